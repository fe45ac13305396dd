// The world of processes that this process is a rank of: started once, stopped once.
//
// MPI can be started once in a process, hence functions and not a class. All of them may be called from any thread.

#ifndef WHALE_KERNELS_COMMUNICATOR_WORLD_H_
#define WHALE_KERNELS_COMMUNICATOR_WORLD_H_

#include <string>

#include "kernels/communicator/communicator.h"

namespace whale {

// Loads MPI from the file `mpi_library` (libmpi_abi.so.1), joins the world and says which rank of how many this is.
// All ranks must call it. A second call with the same world running only gives rank and size again.
Status StartWorld(const std::string& mpi_library, int* rank, int* size);

// The world's communicator, or null where StartWorld has not succeeded. It stays valid after StopWorld (its calls then
// end with kUnavailable) and until the process ends.
//
// BUFFERS: after a status that is not ok, the transport may still read and write what the call pointed at, at any later
// time. Whoever owns these buffers must then never free them (leak them on purpose).
Communicator* World();

// A call that makes no progress for this long ends with kDeadlineExceeded. Holds for calls in flight too; may be called
// before StartWorld. 300 s where nothing is said.
void SetWorldTimeout(double seconds);

// Ends every call in flight, and every later one, with kUnavailable and this message; and a StartWorld that waits for
// other ranks. Nothing where no world runs or starts.
void AbortWorld(const std::string& message);

// Leaves the world, in bounded time: waits a few seconds for the calls in flight, then ends them; after AbortWorld, for
// three seconds at most. If every call went well MPI is finalized: that waits for all ranks, at most for the timeout of
// calls, or until AbortWorld. Who leaves without it is taken for dead by mpiexec, which then ends the other ranks.
void StopWorld();

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_WORLD_H_
