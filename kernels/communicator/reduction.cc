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

namespace whale {
namespace {

// Segments under way between two ranks in each direction.
constexpr size_t kWindow = 3;

class OwnedReduction : public Operation {
 public:
  OwnedReduction(CollectiveCall call, int rank)
      : call_(std::move(call)),
        place_(PlaceOf(rank, call_.call.ranks)),
        gathers_(call_.collective == Collective::kAllReduce),
        element_bytes_(static_cast<int64_t>(SizeOf(call_.arithmetic.type))),
        agreement_(call_, rank, OthersOf(call_, rank)),
        owned_(call_.call.ranks.size()),
        contributions_(call_.call.ranks.size()) {
    if (gathers_) {
      CutAmongOwners();
    } else {
      CutByParts();
    }
  }

  std::string title() const override { return Title(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    int64_t moved = 0;
    Status status = agreement_.Advance(engine, &moved);
    while (moved-- > 0 && status.ok()) status = Taken(Transfer(), -1, -1);
    for (size_t place = 0; place < owned_.size() && status.ok(); ++place) {
      if (static_cast<int>(place) != place_) status = Contribute(engine, place);
    }
    if (status.ok()) status = Own(engine);
    *over = status.ok() && Over();
    return status;
  }

  std::vector<int> WaitsFor() const override {
    if (!agreement_.reached()) return agreement_.missing();
    std::vector<int> ranks;
    for (size_t place = 0; place < owned_.size(); ++place) {
      if (static_cast<int>(place) == place_) continue;
      if (!ContributionOver(place) || LacksPartOf(place)) ranks.push_back(RankAt(place));
    }
    return ranks;
  }

 private:
  struct Message {
    std::shared_ptr<Transfer> transfer;
    Blocks::Block block;
  };
  // This rank's dealings with the owner of other segments: counts of that owner's segments, from the first on.
  struct Contribution {
    size_t begun = 0;  // part sent
    size_t sent = 0;   // ... and gone
    size_t asked = 0;  // result awaited
    size_t taken = 0;  // ... and here
    std::deque<Message> parts;
    std::deque<Message> results;
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

  void CutAmongOwners() {
    std::vector<Span> spans;
    int64_t total = 0;
    for (const Piece& piece : call_.pieces) {
      const int64_t bytes = piece.count * element_bytes_;
      spans.push_back({static_cast<const char*>(piece.in), static_cast<char*>(piece.out), bytes});
      total += bytes;
    }
    std::vector<int64_t> load(owned_.size());
    const int64_t segment_bytes = SegmentBytes(total, static_cast<int64_t>(owned_.size()));
    for (Segment& segment : CutIntoSegments(spans, element_bytes_, segment_bytes)) {
      size_t owner = 0;
      for (size_t place = 1; place < load.size(); ++place) {
        if (load[place] < load[owner]) owner = place;
      }
      load[owner] += segment.bytes;
      owned_[owner].push_back(std::move(segment));
    }
  }

  void CutByParts() {
    for (size_t place = 0; place < owned_.size(); ++place) {
      std::vector<Span> spans;
      for (const Piece& piece : call_.pieces) {
        const int64_t bytes = piece.count * element_bytes_;
        spans.push_back({static_cast<const char*>(piece.in) + static_cast<int64_t>(place) * bytes,
                         static_cast<char*>(piece.out), bytes});
      }
      owned_[place] = CutIntoSegments(spans, element_bytes_, Blocks::kBytes / 2);
    }
  }

  // Sends parts to the owner at `place`, and takes its results.
  Status Contribute(const Engine& engine, size_t place) {
    Contribution& mine = contributions_[place];
    const std::vector<Segment>& segments = owned_[place];
    while (!mine.parts.empty() && mine.parts.front().transfer->done) {
      Status status = Taken(*mine.parts.front().transfer, RankAt(place), -1);
      if (!status.ok()) return status;
      mine.parts.pop_front();
      ++mine.sent;
    }
    while (mine.begun < segments.size() && mine.begun - mine.sent < kWindow) {
      const Segment& segment = segments[mine.begun++];
      Message part{nullptr, engine.blocks->None()};
      const char* data = PackedInput(segment, engine.blocks, &part.block);
      part.transfer = engine.transport->Send(RankAt(place), TagOf(call_.call.id, kParts), data, segment.bytes);
      mine.parts.push_back(std::move(part));
    }
    return gathers_ ? TakeResults(engine, place) : Status();
  }

  Status TakeResults(const Engine& engine, size_t place) {
    Contribution& mine = contributions_[place];
    const std::vector<Segment>& segments = owned_[place];
    while (!mine.results.empty() && mine.results.front().transfer->done) {
      const Segment& segment = segments[mine.taken++];
      Status status = Taken(*mine.results.front().transfer, RankAt(place), segment.bytes);
      if (!status.ok()) return status;
      Unpack(segment, mine.results.front().block);
      mine.results.pop_front();
    }
    // Only once the part is gone: where the list is reduced in place, the result comes to where the part was.
    while (agreement_.reached() && mine.asked < mine.sent && mine.asked - mine.taken < kWindow) {
      const Segment& segment = segments[mine.asked++];
      Message result{nullptr, engine.blocks->None()};
      char* data = PlaceForOutput(segment, engine.blocks, &result.block);
      result.transfer = engine.transport->Receive(RankAt(place), TagOf(call_.call.id, kResults), data, segment.bytes);
      mine.results.push_back(std::move(result));
    }
    return Status();
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
    while (agreement_.reached() && opened_ < owned_[place_].size() && slots_.size() < kWindow) Open(engine);
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
    const Segment& segment = owned_[place_][slot.segment];
    for (size_t place = 0; place < owned_.size(); ++place) {
      Message part{nullptr, engine.blocks->None()};
      if (static_cast<int>(place) != place_) {
        part.block = engine.blocks->Take();
        part.transfer = engine.transport->Receive(RankAt(place), TagOf(call_.call.id, kParts), part.block.get(),
                                                  segment.bytes);
      }
      slot.received.push_back(std::move(part));
    }
    slots_.push_back(std::move(slot));
  }

  Status ReduceSlot(const Engine& engine, Slot* slot) {
    const Segment& segment = owned_[place_][slot->segment];
    std::vector<const void*> inputs;
    for (size_t place = 0; place < owned_.size(); ++place) {
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
    for (size_t place = 0; gathers_ && place < owned_.size(); ++place) {
      slot->sends.push_back(static_cast<int>(place) == place_
                                ? nullptr
                                : engine.transport->Send(RankAt(place), TagOf(call_.call.id, kResults), result,
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

  bool ContributionOver(size_t place) const {
    const Contribution& mine = contributions_[place];
    return mine.sent == owned_[place].size() && (!gathers_ || mine.taken == owned_[place].size());
  }

  bool LacksPartOf(size_t place) const {
    for (const Slot& slot : slots_) {
      if (!slot.reduced && !slot.received[place].transfer->done) return true;
      if (slot.reduced && gathers_ && slot.sends[place] != nullptr && !slot.sends[place]->done) return true;
    }
    return false;
  }

  bool Over() const {
    for (size_t place = 0; place < owned_.size(); ++place) {
      if (static_cast<int>(place) != place_ && !ContributionOver(place)) return false;
    }
    return agreement_.reached() && agreement_.sent() && opened_ == owned_[place_].size() && slots_.empty();
  }

  const CollectiveCall call_;
  const int place_;
  const bool gathers_;
  const int64_t element_bytes_;
  Agreement agreement_;
  std::vector<std::vector<Segment>> owned_;  // by the owner's place
  std::vector<Contribution> contributions_;  // by the owner's place
  std::deque<Slot> slots_;
  size_t opened_ = 0;
};

}  // namespace

std::unique_ptr<Operation> MakeReduction(CollectiveCall call, int rank) {
  if (IsSmall(call)) return MakeSmallReduction(std::move(call), rank);
  return std::make_unique<OwnedReduction>(std::move(call), rank);
}

}  // namespace whale
