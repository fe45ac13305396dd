// Which call of one rank meets which call of another.
//
// Each rank counts by itself, label by label, so that functions may be called in any order, and a call that ends with an
// error leaves the next ones alone:
//
//   label 'sum at train.py:8' among ranks 0, 1      step of TensorFlow   run   turn
//                                                        70               0     0
//     for k in range(2): sum(x)                          93               1     0 (iteration 0)
//                                                        93               1     1 (iteration 1)

#ifndef WHALE_KERNELS_COMMUNICATOR_TICKETS_H_
#define WHALE_KERNELS_COMMUNICATOR_TICKETS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <tuple>

#include "kernels/communicator/communicator.h"

namespace whale {

// One call: the same on all its ranks, and never again.
struct Ticket {
  uint64_t key = 0;   // a hash of the label and the ranks
  int64_t run = 0;    // how many steps of the rank made calls of this key before
  uint64_t turn = 0;  // which call of the step it is: a hash of the iteration and the repetition

  bool operator<(const Ticket& other) const {
    return std::tie(key, run, turn) < std::tie(other.key, other.run, other.turn);
  }
  bool operator==(const Ticket& other) const {
    return key == other.key && run == other.run && turn == other.turn;
  }
};

class Tickets {
 public:
  // The ticket of a call of `key` under way that the next one could be taken for: one of another step, which can only be
  // another thread's, or of the same place in the same step.
  std::optional<Ticket> Clash(uint64_t key, const Call& call) const;
  // For the next call of `key`, which is under way from now on.
  Ticket Next(uint64_t key, const Call& call);
  void Over(const Ticket& ticket);

 private:
  struct Series {
    int64_t step = 0;
    int64_t run = -1;
    std::map<uint64_t, int64_t> made;  // in this run, by iteration
  };
  struct UnderWay {
    Ticket ticket;
    int64_t step;
    uint64_t iteration;
    bool detached;
  };

  std::map<uint64_t, Series> series_;             // by key
  std::multimap<uint64_t, UnderWay> under_way_;  // by key
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_TICKETS_H_
