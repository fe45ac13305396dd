// The communicators of this process's operations: who may call together, and through what.
//
// A communicator is made beforehand, of a world and some of its ranks, and operations are given its handle. The world
// named "processes" is the one of world.h. Any other name is a world of this process's memory, made when its first call
// comes. Neither is ever unmade: operations of different graphs meet there.

#ifndef WHALE_KERNELS_OPS_WORLDS_H_
#define WHALE_KERNELS_OPS_WORLDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/communicator/communicator.h"
#include "kernels/communicator/memory_communicator.h"

namespace whale {

constexpr char kProcesses[] = "processes";
constexpr int64_t kNotNumbered = -1;

// Who calls, as the input `place` of an operation says it.
struct Place {
  int64_t communicator = 0;  // the handle
  int64_t member = 0;        // the caller's place among the communicator's ranks
  int64_t number = kNotNumbered;
};

// One member of a communicator.
struct Member {
  Communicator* communicator = nullptr;  // of its rank
  std::vector<int> ranks;                // of all members, in the order of the result
  bool of_processes = false;
};

// The handle of these ranks of a world; the same for the same ranks in the same order. No ranks: all processes. Refuses
// ranks that do not exist or are named twice.
Status MakeCommunicator(const std::string& world, std::vector<int> ranks, int64_t* handle);

// Finds who `place` says. Refuses a handle that was not made here, a member that is none, and one that is another
// process. `execute` serves a world of memory that is made here.
Status FindMember(const std::string& op, const Execute& execute, const Place& place, Member* member);

// How long calls wait for other ranks: in all worlds, those still to be made included.
void SetTimeouts(double seconds);

}  // namespace whale

#endif  // WHALE_KERNELS_OPS_WORLDS_H_
