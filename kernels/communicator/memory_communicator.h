// Collectives among the devices of one process: ranks meet, and read one another's buffers directly.
//
// The calls of all ranks meet by (label, step, iteration, ranks). When the last has arrived, the work is cut into flat ranges of the
// list, about one for each rank, and each range is run whole by one thread: it reads a block of all ranks' inputs
// before it writes that block of any output, so a rank's input may be its own output, and no byte has two writers.
//
//     rank 0  in ──┬──────────┬──────────┐
//     rank 1  in ──┼──────────┼──────────┤
//               shard 0    shard 1    shard 2      (closures given to `Execute`)
//     rank 0 out ◀─┼──────────┼──────────┤
//     rank 1 out ◀─┴──────────┴──────────┘
//
// Buffers are free again once `done` has run, whatever its status.

#ifndef WHALE_KERNELS_COMMUNICATOR_MEMORY_COMMUNICATOR_H_
#define WHALE_KERNELS_COMMUNICATOR_MEMORY_COMMUNICATOR_H_

#include <functional>
#include <memory>
#include <vector>

#include "kernels/communicator/communicator.h"

namespace whale {

// Runs a closure soon, on any thread. It must not wait for closures given to it later.
using Execute = std::function<void(std::function<void()>)>;

class MemoryMeetings;

// A world of `size` ranks in this process. `execute` shares out large work; without it, and for small work, the thread
// that makes the last call does it all. Dones run on the thread that finishes last.
class MemoryWorld {
 public:
  explicit MemoryWorld(int size, Execute execute = nullptr);
  // No call may be in flight: Abort first where there might be one.
  ~MemoryWorld();
  MemoryWorld(const MemoryWorld&) = delete;
  MemoryWorld& operator=(const MemoryWorld&) = delete;

  int size() const { return static_cast<int>(ranks_.size()); }
  // The communicator of one rank: lives as long as the world.
  Communicator* rank(int number) const { return ranks_[number].get(); }

  // A meeting that is not complete so long after its first call ends with kDeadlineExceeded: names the ranks that are
  // missing. 300 s where nothing is said; also for meetings that already wait.
  void SetTimeout(double seconds);

 private:
  std::shared_ptr<MemoryMeetings> meetings_;
  std::vector<std::unique_ptr<Communicator>> ranks_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MEMORY_COMMUNICATOR_H_
