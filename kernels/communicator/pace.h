// How a thread waits for what it has to look for itself.
//
// A look costs next to nothing, but falling asleep and waking up takes some 20 us of a core. Where the core is idle
// that harms nobody, and the sooner a message is seen the better; where other threads of the process compute meanwhile,
// it is taken from them.

#ifndef WHALE_KERNELS_COMMUNICATOR_PACE_H_
#define WHALE_KERNELS_COMMUNICATOR_PACE_H_

#include "kernels/communicator/deadlines.h"

namespace whale {

// For one thread.
class Pace {
 public:
  // Something has happened: the waiting begins anew.
  void Moved(Clock::time_point now);
  // Nothing has happened. For how long to sleep before the next look; 0 to look again at once, the core having been
  // offered to other threads where that is due. `is_woken`: the sleep ends by itself when something comes.
  Clock::duration Rest(bool is_woken);

 private:
  // Whether the process's other threads had most of a core since this was asked last.
  bool OthersCompute(Clock::time_point now);

  Clock::time_point moved_at_ = Clock::now();
  Clock::time_point asked_at_ = Clock::now();
  Clock::duration others_ = Clock::duration::zero();
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_PACE_H_
