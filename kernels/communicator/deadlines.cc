#include "kernels/communicator/deadlines.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

namespace whale {
namespace {

class Watcher {
 public:
  void Add(std::weak_ptr<Expiring> expiring) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!started_) {
      started_ = true;
      std::thread([this] { Run(); }).detach();
    }
    added_.insert(std::move(expiring));
    changed_.notify_one();
  }

 private:
  using Set = std::set<std::weak_ptr<Expiring>, std::owner_less<std::weak_ptr<Expiring>>>;

  void Run() {
    Set watched;
    Clock::time_point next = Clock::time_point::max();
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        auto woken = [this] { return !added_.empty(); };
        if (next == Clock::time_point::max()) {
          changed_.wait(lock, woken);
        } else {
          changed_.wait_until(lock, next, woken);
        }
        watched.insert(added_.begin(), added_.end());
        added_.clear();
      }
      next = Clock::time_point::max();
      Set kept;
      for (const std::weak_ptr<Expiring>& each : watched) {
        const std::shared_ptr<Expiring> alive = each.lock();
        if (alive == nullptr) continue;
        const Clock::time_point again = alive->Expire(Clock::now());
        if (again != Clock::time_point::max()) kept.insert(each);
        next = std::min(next, again);
      }
      watched = std::move(kept);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;
  Set added_;
};

}  // namespace

void Watch(std::weak_ptr<Expiring> expiring) {
  static Watcher* const watcher = new Watcher;  // never deleted: its thread may outlive the static objects
  watcher->Add(std::move(expiring));
}

Clock::duration DurationOf(double seconds) {
  const double bounded = std::min(std::max(seconds, 0.0), 1e9);  // 30 years
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(bounded));
}

}  // namespace whale
