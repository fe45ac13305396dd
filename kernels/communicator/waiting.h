// What a rank says when another asks where it is.

#ifndef WHALE_KERNELS_COMMUNICATOR_WAITING_H_
#define WHALE_KERNELS_COMMUNICATOR_WAITING_H_

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "kernels/communicator/deadlines.h"

namespace whale {

// "all-reduce 'step at train.py:8' of float32 [3], sum, for 5.1 s, waits for rank 1"
std::string WaitingText(const std::string& title, const std::string& brings, Clock::duration since,
                        const std::vector<int>& missing);

// Joins what one rank waits in; "no call" where it is in none.
std::string Joined(const std::vector<std::string>& calls);

// What a rank has said of itself, and when.
struct Heard {
  std::string text;
  Clock::time_point at;

  bool IsRecent() const;
  // "all-reduce ..., as it said 0.2 s ago"
  std::string Text() const;
};

// The calls that have waited in vain lately: who asks a moment later than others still hears of them.
class Recent {
 public:
  void Add(std::string text);
  // The last one first: "all-reduce ..., until it failed 0.2 s ago".
  std::vector<std::string> Texts() const;

 private:
  std::deque<std::pair<std::string, Clock::time_point>> calls_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_WAITING_H_
