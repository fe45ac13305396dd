#include "kernels/communicator/offer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

namespace whale {
namespace {

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

// "3+2, 1+0": what each rank gets of each tensor of a reduce-scatter.
std::string PartsOf(const CollectiveCall& call) {
  std::string text;
  for (size_t i = 0; i < call.pieces.size(); ++i) {
    for (size_t place = 0; place < call.rows.size(); ++place) {
      text += (place > 0 ? "+" : i > 0 ? ", " : "") + std::to_string(call.rows[place][i]);
    }
  }
  return text;
}

// Types and shapes of all tensors, and how they are cut.
std::string TensorsOf(const CollectiveCall& call) {
  std::string text = call.call.tensors;
  if (text.empty() && !call.pieces.empty()) {
    text = NameOf(call.arithmetic.type);
    for (size_t i = 0; i < call.pieces.size(); ++i) {
      text += (i == 0 ? " [" : ", [") + std::to_string(call.pieces[i].count) + "]";
    }
  }
  const bool is_cut = call.collective == Collective::kReduceScatter && !call.rows.empty();
  return is_cut ? text + " in parts of " + PartsOf(call) : text;
}

std::string Shown(const Offer& offer) {
  const std::string text = offer.tensors;
  const bool whole = text.size() + 1 < Offer::kShown;
  const char* of = offer.collective == Collective::kAllGather ? " in a row of each," : " in all,";
  return whole ? text : text + "..., " + Count(offer.elements, "element") + of;
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
  for (const Piece& piece : call.pieces) offer.elements += piece.count;
  const std::string tensors = TensorsOf(call);
  offer.hash = HashOf(tensors);
  std::memcpy(offer.tensors, tensors.data(), std::min<size_t>(tensors.size(), Offer::kShown - 1));
  return offer;
}

std::string Difference(const Offer& mine, int my_rank, const Offer& other, int other_rank) {
  auto contrast = [&](const std::string& a, const std::string& b) { return Contrast(my_rank, a, other_rank, b); };
  if (mine.collective != other.collective) {
    return contrast(std::string("a call of ") + NameOf(mine.collective),
                    std::string("a call of ") + NameOf(other.collective));
  }
  if (mine.pieces != other.pieces) return contrast(Count(mine.pieces, "tensor"), Count(other.pieces, "tensor"));
  if (mine.type != other.type) return contrast(NameOf(mine.type), NameOf(other.type));
  if (mine.reduction != other.reduction) return contrast(NameOf(mine.reduction), NameOf(other.reduction));
  if (mine.scale != other.scale) {
    return contrast("the scale " + Number(mine.scale), "the scale " + Number(other.scale));
  }
  if (mine.root != other.root) {
    return contrast("the root " + std::to_string(mine.root), "the root " + std::to_string(other.root));
  }
  if (mine.hash == other.hash) return "";
  const std::string own = Shown(mine), theirs = Shown(other);
  return own == theirs ? contrast("some tensors after " + own, "others") : contrast(own, theirs);
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
  if (call.root < 0 || call.root >= static_cast<int>(ranks.size())) {
    return wrong("there is no place " + std::to_string(call.root) + " in " + NamesOf(ranks) + " for the root.");
  }
  if (call.collective == Collective::kAllGather && call.pieces.size() > kMostGathered) {
    return wrong(Count(static_cast<int64_t>(call.pieces.size()), "tensor") + " are given, and at most " +
                 std::to_string(kMostGathered) + " are possible.");
  }
  for (const Piece& piece : call.pieces) {
    if (piece.count < 0) return wrong("a tensor has " + std::to_string(piece.count) + " elements.");
  }
  const bool reduces = call.collective == Collective::kAllReduce || call.collective == Collective::kReduceScatter;
  return reduces ? CheckArithmetic(call.call.label.text, call.arithmetic) : Status();
}

int64_t RowsOf(const CollectiveCall& call, size_t place, size_t piece) {
  return call.rows.empty() ? 1 : call.rows[place][piece];
}

Status TakeRows(Rows rows, CollectiveCall* call) {
  call->rows = std::move(rows);
  std::vector<void*> outputs;
  Status status = call->make_outputs(call->rows, &outputs);
  for (size_t i = 0; status.ok() && i < outputs.size(); ++i) call->pieces[i].out = outputs[i];
  return status;
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
  return std::string(NameOf(call.collective)) + " '" + call.call.label.text + "'";
}

std::string Brings(const CollectiveCall& call) {
  std::string text = call.pieces.empty() ? "" : Shown(OfferOf(call));
  const bool reduces = call.collective == Collective::kAllReduce || call.collective == Collective::kReduceScatter;
  return reduces && !text.empty() ? text + ", " + NameOf(call.arithmetic.reduction) : text;
}

std::string Seconds(double seconds) { return Number(seconds); }

}  // namespace whale
