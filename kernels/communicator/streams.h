// A row of segments to or from one rank, a few of them under way at a time.

#ifndef WHALE_KERNELS_COMMUNICATOR_STREAMS_H_
#define WHALE_KERNELS_COMMUNICATOR_STREAMS_H_

#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/communicator/operation.h"
#include "kernels/communicator/segments.h"

namespace whale {

// Says whether a transfer went well, and counts it: Operation::Taken.
using Take = std::function<Status(const Transfer&, int rank, int64_t bytes)>;

class Outgoing {
 public:
  Outgoing(int rank, int tag, std::vector<Segment> segments)
      : rank_(rank), tag_(tag), segments_(std::move(segments)) {}

  int rank() const { return rank_; }
  bool over() const { return sent_ == segments_.size(); }

  // Sends on; only the first `ready` segments.
  Status Advance(const Engine& engine, const Take& take, size_t ready = SIZE_MAX) {
    while (!under_way_.empty() && under_way_.front().first->done) {
      Status status = take(*under_way_.front().first, rank_, -1);
      if (!status.ok()) return status;
      under_way_.pop_front();
      ++sent_;
    }
    while (begun_ < segments_.size() && begun_ < ready && begun_ - sent_ < kWindow) {
      const Segment& segment = segments_[begun_++];
      Blocks::Block block = engine.blocks->None();
      const char* data = PackedInput(segment, engine.blocks, &block);
      under_way_.emplace_back(engine.transport->Send(rank_, tag_, data, segment.bytes), std::move(block));
    }
    return Status();
  }

 private:
  static constexpr size_t kWindow = 4;
  const int rank_;
  const int tag_;
  const std::vector<Segment> segments_;
  size_t begun_ = 0;
  size_t sent_ = 0;
  std::deque<std::pair<std::shared_ptr<Transfer>, Blocks::Block>> under_way_;
};

class Incoming {
 public:
  Incoming(int rank, int tag, std::vector<Segment> segments)
      : rank_(rank), tag_(tag), segments_(std::move(segments)) {}

  int rank() const { return rank_; }
  // How many segments are here, from the first on.
  size_t taken() const { return taken_; }
  bool over() const { return taken_ == segments_.size(); }

  Status Advance(const Engine& engine, const Take& take) {
    while (!under_way_.empty() && under_way_.front().first->done) {
      const Segment& segment = segments_[taken_];
      Status status = take(*under_way_.front().first, rank_, segment.bytes);
      if (!status.ok()) return status;
      Unpack(segment, under_way_.front().second);
      under_way_.pop_front();
      ++taken_;
    }
    while (asked_ < segments_.size() && asked_ - taken_ < kWindow) {
      const Segment& segment = segments_[asked_++];
      Blocks::Block block = engine.blocks->None();
      char* data = PlaceForOutput(segment, engine.blocks, &block);
      under_way_.emplace_back(engine.transport->Receive(rank_, tag_, data, segment.bytes), std::move(block));
    }
    return Status();
  }

 private:
  static constexpr size_t kWindow = 4;
  const int rank_;
  const int tag_;
  const std::vector<Segment> segments_;
  size_t asked_ = 0;
  size_t taken_ = 0;
  std::deque<std::pair<std::shared_ptr<Transfer>, Blocks::Block>> under_way_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_STREAMS_H_
