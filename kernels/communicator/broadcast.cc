// Broadcast between processes: segments flow down a binomial tree, each passed on as soon as it is here.
//
//   0 ─▶ 4 ─▶ 6 ─▶ 7        places counted from the root on; who is at k has the parent k less its lowest bit
//   │    └──▶ 5
//   ├──▶ 2 ─▶ 3
//   └──▶ 1

#include <cstring>
#include <deque>
#include <optional>
#include <utility>

#include "kernels/communicator/agreement.h"
#include "kernels/communicator/operation.h"
#include "kernels/communicator/streams.h"

namespace whale {
namespace {

struct Tree {
  int parent = -1;  // a rank; -1 for the root
  std::vector<int> children;

  std::vector<int> neighbours() const {
    std::vector<int> ranks = children;
    if (parent >= 0) ranks.push_back(parent);
    return ranks;
  }
};

Tree TreeOf(const CollectiveCall& call, int rank) {
  const std::vector<int>& ranks = call.call.ranks;
  const int size = static_cast<int>(ranks.size());
  const int place = (PlaceOf(rank, ranks) - call.root + size) % size;
  auto rank_at = [&](int from_root) { return ranks[(from_root + call.root) % size]; };
  const int lowest = place == 0 ? size : place & -place;
  Tree tree;
  if (place > 0) tree.parent = rank_at(place - lowest);
  int below = 1;
  while (below < lowest && place + below < size) below *= 2;
  // The deepest subtree first: it has the longest way to go.
  for (below /= 2; below > 0; below /= 2) tree.children.push_back(rank_at(place + below));
  return tree;
}

class Broadcast : public Operation {
 public:
  Broadcast(CollectiveCall call, int rank, const Admission& own)
      : call_(std::move(call)),
        own_(own),
        tree_(TreeOf(call_, rank)),
        element_bytes_(static_cast<int64_t>(SizeOf(call_.arithmetic.type))),
        agreement_(call_, rank, own, tree_.neighbours()) {
    const bool is_root = tree_.parent < 0;
    std::vector<Span> spans;
    int64_t total = 0;
    for (const Piece& piece : call_.pieces) {
      const int64_t bytes = piece.count * element_bytes_;
      // Who is not the root passes on what has come to its own output.
      const void* in = is_root ? piece.in : piece.out;
      spans.push_back({static_cast<const char*>(in), static_cast<char*>(piece.out), bytes});
      total += bytes;
    }
    const std::vector<Segment> segments = CutIntoSegments(spans, element_bytes_, SegmentBytes(total, 2));
    if (!is_root) incoming_.emplace(Direction::kFrom, tree_.parent, kParts, segments);
    for (const int child : tree_.children) outgoing_.emplace_back(Direction::kTo, child, kParts, segments);
  }

  std::string title() const override { return Title(call_); }
  std::string brings() const override { return Brings(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    if (!begun_) Begin();
    Status status = agreement_.Advance(engine, this);
    if (!status.ok() || !agreement_.reached()) return status;
    *over = true;
    if (incoming_) {
      status = incoming_->Advance(engine, this, agreement_.number_of(tree_.parent));
      *over = *over && incoming_->over();
    }
    for (Stream& stream : outgoing_) {
      const size_t ready = incoming_ ? incoming_->ended() : SIZE_MAX;
      if (status.ok()) status = stream.Advance(engine, this, own_.number, ready);
      *over = *over && stream.over();
    }
    *over = *over && status.ok();
    return status;
  }

  std::vector<int> WaitsFor() const override {
    if (!agreement_.reached()) return agreement_.missing();
    if (incoming_ && !incoming_->over()) return {incoming_->rank()};
    std::vector<int> ranks;
    for (const Stream& stream : outgoing_) {
      if (!stream.over()) ranks.push_back(stream.rank());
    }
    return ranks;
  }

 private:
  void Begin() {
    begun_ = true;
    if (incoming_) return;
    for (const Piece& piece : call_.pieces) {
      if (piece.in != piece.out && piece.count > 0) std::memcpy(piece.out, piece.in, piece.count * element_bytes_);
    }
  }

  const CollectiveCall call_;
  const Admission own_;
  const Tree tree_;
  const int64_t element_bytes_;
  Agreement agreement_;
  bool begun_ = false;
  std::optional<Stream> incoming_;
  std::deque<Stream> outgoing_;
};

}  // namespace

std::unique_ptr<Operation> MakeBroadcast(CollectiveCall call, int rank, const Admission& own) {
  return std::make_unique<Broadcast>(std::move(call), rank, own);
}

}  // namespace whale
