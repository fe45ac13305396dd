// All-reduce and reduce-scatter between processes: every segment has an owner, who reduces it.
//
//   rank 0  ──part──▶ ┐
//   rank 1  (owner)   ├ reduce in the order of the ranks ──result──▶ ranks 0, 2     (all-reduce only)
//   rank 2  ──part──▶ ┘
//
// All ranks own about as many bytes, so each sends and takes what a ring all-reduce would, in two hops instead of
// 2 (n - 1), and the order of the sum is the same everywhere. A few segments are under way at a time: while one is
// reduced the next ones travel.

#include <deque>
#include <utility>

#include "kernels/communicator/agreement.h"
#include "kernels/communicator/operation.h"
#include "kernels/communicator/segments.h"
#include "kernels/communicator/small_reduction.h"
#include "kernels/communicator/streams.h"

namespace whale {
namespace {

// Segments under way between two ranks in each direction.
constexpr size_t kWindow = 3;

class OwnedReduction : public Operation {
 public:
  OwnedReduction(CollectiveCall call, int rank, const Admission& own)
      : call_(std::move(call)),
        own_(own),
        place_(PlaceOf(rank, call_.call.ranks)),
        gathers_(call_.collective == Collective::kAllReduce),
        element_bytes_(static_cast<int64_t>(SizeOf(call_.arithmetic.type))),
        agreement_(call_, rank, own, OthersOf(call_, rank)) {
    for (std::vector<Segment>& segments : gathers_ ? CutAmongOwners() : CutByParts()) {
      const int owner = RankAt(parts_.size());
      if (owner == rank) owned_.swap(segments);
      parts_.emplace_back(Direction::kTo, owner, kParts, segments, kWindow);
      if (!gathers_) segments.clear();
      results_.emplace_back(Direction::kFrom, owner, kResults, std::move(segments), kWindow);
    }
  }

  std::string title() const override { return Title(call_); }
  std::string brings() const override { return Brings(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    Status status = agreement_.Advance(engine, this);
    for (size_t place = 0; place < parts_.size() && status.ok(); ++place) {
      status = parts_[place].Advance(engine, this, own_.number);
      // Only once the part is gone: where the list is reduced in place, the result comes to where the part was.
      const size_t ready = agreement_.reached() ? parts_[place].ended() : 0;
      const int number = agreement_.number_of(RankAt(place));
      if (status.ok()) status = results_[place].Advance(engine, this, number, ready);
    }
    if (status.ok()) status = Own(engine);
    *over = status.ok() && Over();
    return status;
  }

  std::vector<int> WaitsFor() const override {
    if (!agreement_.reached()) return agreement_.missing();
    std::vector<int> ranks;
    for (size_t place = 0; place < parts_.size(); ++place) {
      if (static_cast<int>(place) == place_) continue;
      if (!OwnerIsDone(place) || LacksPartOf(place)) ranks.push_back(RankAt(place));
    }
    return ranks;
  }

 private:
  struct Message {
    std::shared_ptr<Transfer> transfer;
    Blocks::Block block;
  };
  // A segment that this rank owns, under way.
  struct Slot {
    size_t segment;
    Message own;                    // its packed input, then its result
    std::vector<Message> received;  // by place
    std::vector<std::shared_ptr<Transfer>> sends;  // of the result, by place
    bool reduced = false;
  };

  int RankAt(size_t place) const { return call_.call.ranks[place]; }

  // The segments of the list, by the place of their owner.
  std::vector<std::vector<Segment>> CutAmongOwners() const {
    std::vector<Span> spans;
    int64_t total = 0;
    for (const Piece& piece : call_.pieces) {
      const int64_t bytes = piece.count * element_bytes_;
      spans.push_back({static_cast<const char*>(piece.in), static_cast<char*>(piece.out), bytes});
      total += bytes;
    }
    std::vector<std::vector<Segment>> cut(call_.call.ranks.size());
    std::vector<int64_t> load(cut.size());
    const int64_t segment_bytes = SegmentBytes(total, static_cast<int64_t>(cut.size()));
    for (Segment& segment : CutIntoSegments(spans, element_bytes_, segment_bytes)) {
      size_t owner = 0;
      for (size_t place = 1; place < load.size(); ++place) {
        if (load[place] < load[owner]) owner = place;
      }
      load[owner] += segment.bytes;
      cut[owner].push_back(std::move(segment));
    }
    return cut;
  }

  std::vector<std::vector<Segment>> CutByParts() const {
    std::vector<std::vector<Segment>> cut;
    std::vector<int64_t> offsets(call_.pieces.size());
    for (size_t place = 0; place < call_.call.ranks.size(); ++place) {
      std::vector<Span> spans;
      for (size_t i = 0; i < call_.pieces.size(); ++i) {
        const Piece& piece = call_.pieces[i];
        const int64_t bytes = RowsOf(call_, place, i) * piece.count * element_bytes_;
        spans.push_back({static_cast<const char*>(piece.in) + offsets[i], static_cast<char*>(piece.out), bytes});
        offsets[i] += bytes;
      }
      cut.push_back(CutIntoSegments(spans, element_bytes_, Blocks::kBytes / 2));
    }
    return cut;
  }

  // Takes the others' parts of what this rank owns, reduces, and sends the results.
  Status Own(const Engine& engine) {
    while (!slots_.empty() && slots_.front().reduced && SentAll(slots_.front())) {
      for (size_t place = 0; place < slots_.front().sends.size(); ++place) {
        const std::shared_ptr<Transfer>& send = slots_.front().sends[place];
        Status status = send == nullptr ? Status() : Taken(*send, RankAt(place), -1);
        if (!status.ok()) return status;
      }
      slots_.pop_front();
    }
    while (agreement_.reached() && opened_ < owned_.size() && slots_.size() < kWindow) Open(engine);
    for (Slot& slot : slots_) {
      if (slot.reduced) continue;
      for (const Message& part : slot.received) {
        if (part.transfer && !part.transfer->done) return Status();
      }
      // One at a time: the transport moves on between two reductions.
      return ReduceSlot(engine, &slot);
    }
    return Status();
  }

  void Open(const Engine& engine) {
    Slot slot{opened_++, {nullptr, engine.blocks->None()}, {}, {}, false};
    const Segment& segment = owned_[slot.segment];
    for (size_t place = 0; place < parts_.size(); ++place) {
      Message part{nullptr, engine.blocks->None()};
      if (static_cast<int>(place) != place_) {
        part.block = engine.blocks->Take();
        const int tag = TagOf(agreement_.number_of(RankAt(place)), kParts);
        part.transfer = engine.transport->Receive(RankAt(place), tag, part.block.get(), segment.bytes);
      }
      slot.received.push_back(std::move(part));
    }
    slots_.push_back(std::move(slot));
  }

  Status ReduceSlot(const Engine& engine, Slot* slot) {
    const Segment& segment = owned_[slot->segment];
    std::vector<const void*> inputs;
    for (size_t place = 0; place < parts_.size(); ++place) {
      const Message& part = slot->received[place];
      if (part.transfer == nullptr) {
        inputs.push_back(PackedInput(segment, engine.blocks, &slot->own.block));
        continue;
      }
      Status status = Taken(*part.transfer, RankAt(place), segment.bytes);
      if (!status.ok()) return status;
      inputs.push_back(part.block.get());
    }
    // A packed segment is reduced where it was packed.
    char* result = segment.packed() ? slot->own.block.get() : segment.spans[0].out;
    Reduce(call_.arithmetic, inputs, segment.bytes / element_bytes_, result);
    slot->received.clear();
    slot->reduced = true;
    for (size_t place = 0; gathers_ && place < parts_.size(); ++place) {
      slot->sends.push_back(static_cast<int>(place) == place_
                                ? nullptr
                                : engine.transport->Send(RankAt(place), TagOf(own_.number, kResults), result,
                                                         segment.bytes));
    }
    Unpack(segment, slot->own.block);
    return Status();
  }

  static bool SentAll(const Slot& slot) {
    for (const auto& send : slot.sends) {
      if (send != nullptr && !send->done) return false;
    }
    return true;
  }

  bool OwnerIsDone(size_t place) const { return parts_[place].over() && results_[place].over(); }

  bool LacksPartOf(size_t place) const {
    for (const Slot& slot : slots_) {
      if (!slot.reduced && !slot.received[place].transfer->done) return true;
      if (slot.reduced && gathers_ && slot.sends[place] != nullptr && !slot.sends[place]->done) return true;
    }
    return false;
  }

  bool Over() const {
    for (size_t place = 0; place < parts_.size(); ++place) {
      if (!OwnerIsDone(place)) return false;
    }
    return agreement_.reached() && opened_ == owned_.size() && slots_.empty();
  }

  const CollectiveCall call_;
  const Admission own_;
  const int place_;
  const bool gathers_;
  const int64_t element_bytes_;
  Agreement agreement_;
  std::deque<Stream> parts_;    // to the owner at each place; none to this rank itself
  std::deque<Stream> results_;  // from the owner at each place; all-reduce only
  std::vector<Segment> owned_;  // by this rank
  std::deque<Slot> slots_;
  size_t opened_ = 0;
};

}  // namespace

std::unique_ptr<Operation> MakeReduction(CollectiveCall call, int rank, const Admission& own) {
  if (IsSmall(call)) return MakeSmallReduction(std::move(call), rank, own);
  return std::make_unique<OwnedReduction>(std::move(call), rank, own);
}

}  // namespace whale
