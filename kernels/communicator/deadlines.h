// One thread that ends what waits too long, for everything in the process that can wait.

#ifndef WHALE_KERNELS_COMMUNICATOR_DEADLINES_H_
#define WHALE_KERNELS_COMMUNICATOR_DEADLINES_H_

#include <chrono>
#include <memory>

namespace whale {

using Clock = std::chrono::steady_clock;

class Expiring {
 public:
  virtual ~Expiring() = default;
  // Ends what has waited too long, and says when to ask again. Clock::time_point::max(): nothing waits, and whoever
  // begins to wait calls Watch again.
  virtual Clock::time_point Expire(Clock::time_point now) = 0;
};

// Has the thread call Expire soon, and again whenever the last answer says. The thread starts with the first call.
void Watch(std::weak_ptr<Expiring> expiring);

// `seconds` as a duration, and never so long that adding it to now overflows.
Clock::duration DurationOf(double seconds);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_DEADLINES_H_
