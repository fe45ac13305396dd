#include "kernels/communicator/offer.h"

#include <cstdio>
#include <set>

namespace whale {
namespace {

// FNV-1a, by words.
constexpr uint64_t kHashStart = 14695981039346656037u;
uint64_t Hash(uint64_t hash, int64_t value) { return (hash ^ static_cast<uint64_t>(value)) * 1099511628211u; }

std::string Count(int64_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string Contrast(int my_rank, const std::string& mine, int other_rank, const std::string& other) {
  return "rank " + std::to_string(my_rank) + " gives " + mine + " and rank " + std::to_string(other_rank) + " gives " +
         other;
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

}  // namespace

const char* NameOf(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
      return "all-reduce";
    case Collective::kReduceScatter:
      return "reduce-scatter";
    case Collective::kAllGather:
      return "all-gather";
    case Collective::kAllToAll:
      return "all-to-all";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kBarrier:
      return "barrier";
  }
  return "an unknown collective";
}

Offer OfferOf(const CollectiveCall& call) {
  Offer offer;
  offer.collective = call.collective;
  offer.type = call.arithmetic.type;
  offer.reduction = call.arithmetic.reduction;
  offer.scale = call.arithmetic.scale;
  offer.root = call.root;
  offer.pieces = static_cast<int64_t>(call.pieces.size());
  offer.group = offer.hash = kHashStart;
  for (const int rank : call.call.ranks) offer.group = Hash(offer.group, rank);
  for (size_t i = 0; i < call.pieces.size(); ++i) {
    const int64_t count = call.pieces[i].count;
    offer.elements += count;
    offer.hash = Hash(offer.hash, count);
    if (i < Offer::kShown) offer.counts[i] = count;
  }
  return offer;
}

std::string Difference(const Offer& mine, int my_rank, const Offer& other, int other_rank) {
  auto contrast = [&](const std::string& a, const std::string& b) { return Contrast(my_rank, a, other_rank, b); };
  if (mine.collective != other.collective) {
    return contrast(std::string("a call of ") + NameOf(mine.collective),
                    std::string("a call of ") + NameOf(other.collective));
  }
  if (mine.group != other.group) return contrast("one list of ranks", "another");
  if (mine.pieces != other.pieces) return contrast(Count(mine.pieces, "tensor"), Count(other.pieces, "tensor"));
  if (mine.type != other.type) return contrast(NameOf(mine.type), NameOf(other.type));
  if (mine.reduction != other.reduction) return contrast(NameOf(mine.reduction), NameOf(other.reduction));
  if (mine.scale != other.scale) {
    return contrast("the scale " + Number(mine.scale), "the scale " + Number(other.scale));
  }
  if (mine.root != other.root) {
    return contrast("the root " + std::to_string(mine.root), "the root " + std::to_string(other.root));
  }
  if (mine.elements == other.elements && mine.hash == other.hash) return "";
  const std::string unit = std::string(" of ") + NameOf(mine.type);
  for (int64_t i = 0; i < mine.pieces && i < Offer::kShown; ++i) {
    if (mine.counts[i] == other.counts[i]) continue;
    return "of tensor " + std::to_string(i) + ", " +
           contrast(Count(mine.counts[i], "element") + unit, Count(other.counts[i], "element") + unit);
  }
  if (mine.elements == other.elements) return contrast("the tensors in one order", "them in another");
  return contrast(Count(mine.elements, "element") + unit + " in all", Count(other.elements, "element") + " in all");
}

Status CheckCall(const CollectiveCall& call, int rank, int size) {
  const std::vector<int>& ranks = call.call.ranks;
  auto wrong = [&](const std::string& reason) { return Status(Code::kInvalidArgument, Title(call) + ": " + reason); };
  for (const int each : ranks) {
    if (each < 0 || each >= size) {
      return wrong("there is no rank " + std::to_string(each) + " in a world of " + std::to_string(size) + ".");
    }
  }
  if (std::set<int>(ranks.begin(), ranks.end()).size() != ranks.size()) {
    return wrong(NamesOf(ranks) + ": each must be there once.");
  }
  if (PlaceOf(rank, ranks) < 0) {
    return wrong("rank " + std::to_string(rank) + " calls it, but it is of " + NamesOf(ranks) + ".");
  }
  if (call.call.id < 0 || call.call.id >= int64_t{1} << 26) {
    return wrong("its id " + std::to_string(call.call.id) + " is not between 0 and 2^26 - 1.");
  }
  if (call.root < 0 || call.root >= static_cast<int>(ranks.size())) {
    return wrong("there is no place " + std::to_string(call.root) + " in " + NamesOf(ranks) + " for the root.");
  }
  for (const Piece& piece : call.pieces) {
    if (piece.count < 0) return wrong("a tensor has " + std::to_string(piece.count) + " elements.");
  }
  const bool reduces = call.collective == Collective::kAllReduce || call.collective == Collective::kReduceScatter;
  return reduces ? CheckArithmetic(call.call.op, call.arithmetic) : Status();
}

int64_t BytesOf(const CollectiveCall& call) {
  int64_t bytes = 0;
  for (const Piece& piece : call.pieces) bytes += piece.count * static_cast<int64_t>(SizeOf(call.arithmetic.type));
  return bytes;
}

int PlaceOf(int rank, const std::vector<int>& ranks) {
  for (size_t place = 0; place < ranks.size(); ++place) {
    if (ranks[place] == rank) return static_cast<int>(place);
  }
  return -1;
}

std::string NamesOf(const std::vector<int>& ranks) {
  std::string names = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) names += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return names;
}

std::string Title(const CollectiveCall& call) {
  return std::string(NameOf(call.collective)) + " '" + call.call.op + "'";
}

std::string Seconds(double seconds) { return Number(seconds); }

}  // namespace whale
