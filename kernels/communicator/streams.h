// A row of segments to or from one rank, a few of them under way at a time.

#ifndef WHALE_KERNELS_COMMUNICATOR_STREAMS_H_
#define WHALE_KERNELS_COMMUNICATOR_STREAMS_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/communicator/operation.h"
#include "kernels/communicator/segments.h"

namespace whale {

enum class Direction { kTo, kFrom };

class Stream {
 public:
  // `window`: how many segments may be under way.
  Stream(Direction direction, int rank, Phase phase, std::vector<Segment> segments, size_t window = 4)
      : sends_(direction == Direction::kTo),
        rank_(rank),
        phase_(phase),
        segments_(std::move(segments)),
        window_(window) {}

  int rank() const { return rank_; }
  // How many segments are gone, or here, from the first on.
  size_t ended() const { return ended_; }
  bool over() const { return ended_ == segments_.size(); }

  // Ends what is done and begins what fits into the window; only the first `ready` segments. `number`: the sender's, of
  // the call.
  Status Advance(const Engine& engine, Operation* operation, int number, size_t ready = SIZE_MAX) {
    const int tag = TagOf(number, phase_);
    for (; !under_way_.empty() && under_way_.front().transfer->done; ++ended_) {
      const Segment& segment = segments_[ended_];
      Status status = operation->Taken(*under_way_.front().transfer, rank_, sends_ ? -1 : segment.bytes);
      if (!status.ok()) return status;
      if (!sends_) Unpack(segment, under_way_.front().block);
      under_way_.pop_front();
    }
    const size_t stop = std::min(ready, segments_.size());
    for (; begun_ < stop && begun_ - ended_ < window_; ++begun_) {
      under_way_.push_back(Begin(engine, segments_[begun_], tag));
    }
    return Status();
  }

 private:
  struct Message {
    std::shared_ptr<Transfer> transfer;
    Blocks::Block block;  // where a packed segment lies meanwhile
  };

  Message Begin(const Engine& engine, const Segment& segment, int tag) const {
    Message message{nullptr, engine.blocks->None()};
    if (sends_) {
      const char* data = PackedInput(segment, engine.blocks, &message.block);
      message.transfer = engine.transport->Send(rank_, tag, data, segment.bytes);
    } else {
      char* data = PlaceForOutput(segment, engine.blocks, &message.block);
      message.transfer = engine.transport->Receive(rank_, tag, data, segment.bytes);
    }
    return message;
  }

  const bool sends_;
  const int rank_;
  const Phase phase_;
  const std::vector<Segment> segments_;
  const size_t window_;
  size_t begun_ = 0;
  size_t ended_ = 0;
  std::deque<Message> under_way_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_STREAMS_H_
