// Worlds of threads, over memory and over messages, for tests that want either.

#ifndef WHALE_TESTS_KERNELS_WORLDS_H_
#define WHALE_TESTS_KERNELS_WORLDS_H_

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/communicator/memory_communicator.h"
#include "kernels/communicator/message_communicator.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/loop_transport.h"

namespace whale {

// Runs closures one after another on two threads, as a small thread pool does.
class Pool {
 public:
  Pool() {
    for (int i = 0; i < 2; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void Run(std::function<void()> closure) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closures_.push_back(std::move(closure));
    }
    changed_.notify_one();
  }

 private:
  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return over_ || !closures_.empty(); });
      if (closures_.empty()) return;
      std::function<void()> closure = std::move(closures_.front());
      closures_.pop_front();
      lock.unlock();
      closure();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> closures_;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

// `size` ranks over messages.
class LoopWorld {
 public:
  explicit LoopWorld(int size) {
    auto hub = std::make_shared<LoopHub>(size);
    for (int rank = 0; rank < size; ++rank) {
      ranks_.emplace_back();
      auto start = [hub, rank](std::unique_ptr<Transport>* transport) {
        *transport = std::make_unique<LoopTransport>(hub, rank);
        return Status();
      };
      CheckOk(MessageCommunicator::Make(start, 50, &ranks_.back()));
    }
  }
  // All at once, as processes leave: each waits for the others.
  ~LoopWorld() {
    std::vector<std::thread> threads;
    for (auto& rank : ranks_) threads.emplace_back([&rank] { rank = nullptr; });
    for (std::thread& thread : threads) thread.join();
  }
  MessageCommunicator* rank(int number) const { return ranks_[number].get(); }
  void SetTimeout(double seconds) {
    for (auto& rank : ranks_) rank->SetTimeout(seconds);
  }

 private:
  std::vector<std::unique_ptr<MessageCommunicator>> ranks_;
};

// Runs `script` as each rank, on a thread each.
template <typename World>
void RunRanks(const World& world, int size, const std::function<void(Communicator*)>& script) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&, rank] { script(world.rank(rank)); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace whale

#endif  // WHALE_TESTS_KERNELS_WORLDS_H_
