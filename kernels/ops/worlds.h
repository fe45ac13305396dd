// Which communicator an operation's call goes to.
//
// The world named "processes" is the one of world.h. Any other name is a world of this process's memory, made when its
// first call comes and never unmade: operations of different graphs meet in it.

#ifndef WHALE_KERNELS_OPS_WORLDS_H_
#define WHALE_KERNELS_OPS_WORLDS_H_

#include <string>
#include <vector>

#include "kernels/communicator/communicator.h"
#include "kernels/communicator/memory_communicator.h"

namespace whale {

constexpr char kProcesses[] = "processes";

// Who takes part in a call, as an operation's attributes say it.
struct Place {
  std::string world;
  int rank = -1;           // -1: this process's, of the world of processes
  std::vector<int> ranks;  // empty: all, of the world of processes
};

// Finds the communicator of place->rank, and fills in a rank and ranks that were left out. Refuses ranks that do not
// exist, are named twice or lack the own; where a rank is absent from `ranks` it may not call. `execute` serves a world
// of memory that is made here.
Status FindCommunicator(const std::string& op, const Execute& execute, Place* place, Communicator** communicator);

// How long calls wait for other ranks: in all worlds, those still to be made included.
void SetTimeouts(double seconds);

}  // namespace whale

#endif  // WHALE_KERNELS_OPS_WORLDS_H_
