#include "kernels/communicator/pace.h"

#include <time.h>

#include <algorithm>
#include <thread>

namespace whale {
namespace {

using std::chrono::microseconds;

// Of one message between processes that are both awake: worth to poll for.
constexpr microseconds kPoll(5);
// The same while no other thread of the process computes.
constexpr microseconds kIdlePoll(200);
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
  const bool others_compute = OthersCompute(now);
  if (!others_compute && still < kIdlePoll) {
    std::this_thread::yield();  // one of them may only wait for this core, to compute again
    return Clock::duration::zero();
  }
  // A long message needs both ends while it is on its way, though nothing wakes them: look soon first, then ever later,
  // since each look takes the core from the thread that computes (benchmarks/processes_data_parallel).
  if (is_woken) return std::min<Clock::duration>(still, kLongestWokenSleep);
  if (others_compute) return std::clamp<Clock::duration>(still, kShortestBusySleep, kLongestBusySleep);
  // The longer nothing has come, the longer until it is looked at again: a tenth of that.
  return std::clamp<Clock::duration>(still / 10, kShortestSleep, kLongestSleep);
}

}  // namespace whale
