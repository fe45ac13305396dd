// What the C++ tests share: checks that end the program, and waiting for calls within bounded time.

#ifndef WHALE_TESTS_KERNELS_CHECKS_H_
#define WHALE_TESTS_KERNELS_CHECKS_H_

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

#include "kernels/communicator/communicator.h"

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);             \
      std::_Exit(1);                                                                           \
    }                                                                                          \
  } while (false)

#define CHECK_SAME(actual, expected)                                                           \
  do {                                                                                         \
    const std::string a_ = (actual), e_ = (expected);                                          \
    if (a_ != e_) {                                                                            \
      std::fprintf(stderr, "%s:%d:\n  got      %s\n  expected %s\n", __FILE__, __LINE__,       \
                   a_.c_str(), e_.c_str());                                                    \
      std::_Exit(1);                                                                           \
    }                                                                                          \
  } while (false)

namespace whale {

// Takes the status of one call, from whichever thread; fails if it is not called exactly once within a minute.
class Outcome {
 public:
  Done done() {
    return [this](const Status& status) {
      std::lock_guard<std::mutex> lock(mutex_);
      CHECK(!ended_);
      ended_ = true;
      status_ = status;
      changed_.notify_all();
    };
  }

  Status Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    CHECK(changed_.wait_for(lock, std::chrono::seconds(60), [this] { return ended_; }));
    return status_;
  }

  bool ended() {
    std::lock_guard<std::mutex> lock(mutex_);
    return ended_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  Status status_;
};

inline void CheckOk(const Status& status) { CHECK_SAME(status.message(), ""); }

}  // namespace whale

#endif  // WHALE_TESTS_KERNELS_CHECKS_H_
