#include "kernels/communicator/pace.h"

#include <time.h>

#include <algorithm>
#include <thread>

namespace whale {
namespace {

using std::chrono::microseconds;

// Of one message between processes that are both awake: worth to poll for.
constexpr microseconds kPoll(5);
// Others that share the core get it, but this thread is back soon.
constexpr microseconds kYield(200);
constexpr microseconds kShortestSleep(20);
constexpr microseconds kLongestSleep(200);
// While others compute, where nothing wakes this thread: waking up by itself then takes up to a tenth of a core.
constexpr microseconds kShortestBusySleep(100);
constexpr microseconds kLongestBusySleep(200);
// Where a sleep ends when something comes.
constexpr microseconds kLongestWokenSleep(5000);

Clock::duration TimeOf(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace

void Pace::Moved(Clock::time_point now) { moved_at_ = now; }

bool Pace::OthersCompute(Clock::time_point now) {
  const Clock::duration others = TimeOf(CLOCK_PROCESS_CPUTIME_ID) - TimeOf(CLOCK_THREAD_CPUTIME_ID);
  const bool compute = 2 * (others - others_) > now - asked_at_;
  others_ = others;
  asked_at_ = now;
  return compute;
}

Clock::duration Pace::Rest(bool is_woken) {
  const Clock::time_point now = Clock::now();
  const Clock::duration still = now - moved_at_;
  if (still < kPoll) return Clock::duration::zero();
  // A long message needs both ends while it is on its way: soon first, then ever later. Each look costs the thread that
  // computes on this core, so that it is not worth to look for long (benchmarks/processes_data_parallel).
  if (is_woken) return std::min<Clock::duration>(still, kLongestWokenSleep);
  if (OthersCompute(now)) return std::clamp<Clock::duration>(still, kShortestBusySleep, kLongestBusySleep);
  if (still < kYield) {
    std::this_thread::yield();
    return Clock::duration::zero();
  }
  // The longer nothing has come, the longer until it is looked at again: a tenth of that.
  return std::clamp<Clock::duration>(still / 10, kShortestSleep, kLongestSleep);
}

}  // namespace whale
