// A transport among threads of one process, so that what is built on transports runs under sanitizers.
//
// As strict as MPI may be: a long send ends only once its receive was posted and its bytes were taken, a short one at
// once; bytes are taken while the receiver polls.

#ifndef WHALE_TESTS_KERNELS_LOOP_TRANSPORT_H_
#define WHALE_TESTS_KERNELS_LOOP_TRANSPORT_H_

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "kernels/communicator/transport.h"

namespace whale {

class LoopHub {
 public:
  explicit LoopHub(int size) : size_(size) {}
  int size() const { return size_; }

  struct Message {
    const char* data;
    int64_t bytes;
    std::vector<char> copy;  // of a short message
    bool taken = false;
  };

  std::mutex mutex;
  std::map<std::tuple<int, int, int>, std::deque<std::shared_ptr<Message>>> messages;  // by from, to, tag

 private:
  const int size_;
};

class LoopTransport : public Transport {
 public:
  LoopTransport(std::shared_ptr<LoopHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  int64_t max_tag() const override { return (int64_t{1} << 28) - 1; }

  std::shared_ptr<Transfer> Send(int to, int tag, const void* data, int64_t bytes) override {
    constexpr int64_t kShort = 1024;
    auto message = std::make_shared<LoopHub::Message>();
    auto transfer = std::make_shared<Transfer>();
    const char* begin = static_cast<const char*>(data);
    if (bytes <= kShort) message->copy.assign(begin, begin + bytes);
    message->data = bytes <= kShort ? message->copy.data() : begin;
    message->bytes = transfer->bytes = bytes;
    transfer->done = bytes <= kShort;
    std::lock_guard<std::mutex> lock(hub_->mutex);
    hub_->messages[{rank_, to, tag}].push_back(message);
    if (!transfer->done) sends_.emplace_back(message, transfer);
    return transfer;
  }

  std::shared_ptr<Transfer> Receive(int from, int tag, void* data, int64_t bytes) override {
    auto transfer = std::make_shared<Transfer>();
    receives_[{from, rank_, tag}].push_back({static_cast<char*>(data), bytes, transfer});
    return transfer;
  }

  std::shared_ptr<Transfer> Listen(int from, int tag, void* data, int64_t bytes) override {
    return Receive(from, tag, data, bytes);
  }

  bool Poll() override {
    std::lock_guard<std::mutex> lock(hub_->mutex);
    bool moved = false;
    for (auto& [key, posted] : receives_) {
      auto& sent = hub_->messages[key];
      while (!posted.empty() && !sent.empty()) {
        Take(posted.front(), sent.front().get());
        posted.pop_front();
        sent.pop_front();
        moved = true;
      }
    }
    for (auto& [message, transfer] : sends_) {
      if (!transfer->done && message->taken) transfer->done = moved = true;
    }
    while (!sends_.empty() && sends_.front().second->done) sends_.pop_front();
    return moved;
  }

  bool Wait(Clock::duration most) override {
    std::this_thread::sleep_for(std::min<Clock::duration>(most, std::chrono::microseconds(200)));
    return false;
  }
  void Wake() override {}
  void Close(bool) override {}

 private:
  struct Posted {
    char* data;
    int64_t bytes;
    std::shared_ptr<Transfer> transfer;
  };

  static void Take(const Posted& posted, LoopHub::Message* message) {
    posted.transfer->done = true;
    posted.transfer->bytes = message->bytes;
    message->taken = true;
    if (message->bytes > posted.bytes) {
      posted.transfer->status = Status(Code::kInvalidArgument, "a message is longer than what was expected.");
    } else if (message->bytes > 0) {
      std::memcpy(posted.data, message->data, message->bytes);
    }
  }

  const std::shared_ptr<LoopHub> hub_;
  const int rank_;
  std::deque<std::pair<std::shared_ptr<LoopHub::Message>, std::shared_ptr<Transfer>>> sends_;
  std::map<std::tuple<int, int, int>, std::deque<Posted>> receives_;
};

}  // namespace whale

#endif  // WHALE_TESTS_KERNELS_LOOP_TRANSPORT_H_
