// What Python calls by ctypes. Errors come back as text, cut to what the caller has room for; no exception gets out.

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/communicator/world.h"
#include "kernels/ops/worlds.h"

#define WHALE_EXPORT extern "C" __attribute__((visibility("default")))

static void Tell(const whale::Status& status, char* error, int64_t error_bytes) {
  if (error_bytes <= 0) return;
  std::strncpy(error, status.message().c_str(), static_cast<size_t>(error_bytes - 1));
  error[error_bytes - 1] = '\0';
}

// Joins the world of processes through the MPI library at `path`. Returns 0, or the Code of the failure, with its
// message in `error`.
WHALE_EXPORT int whale_start_world(const char* path, int* rank, int* size, char* error, int64_t error_bytes) {
  const whale::Status status = whale::StartWorld(path, rank, size);
  Tell(status, error, error_bytes);
  return static_cast<int>(status.code());
}

WHALE_EXPORT void whale_set_timeout(double seconds) { whale::SetTimeouts(seconds); }

WHALE_EXPORT void whale_abort_world(const char* message) { whale::AbortWorld(message); }

WHALE_EXPORT void whale_stop_world() { whale::StopWorld(); }

// The handle of a communicator: of these ranks of a world, or of all processes where there are none. -1 where there can
// be no such, with the reason in `error`.
WHALE_EXPORT int64_t whale_make_communicator(const char* world, const int* ranks, int count, char* error,
                                             int64_t error_bytes) {
  int64_t handle = -1;
  const whale::Status status = whale::MakeCommunicator(world, std::vector<int>(ranks, ranks + count), &handle);
  Tell(status, error, error_bytes);
  return status.ok() ? handle : -1;
}

// Writes rank and size and returns 1 where a world of processes was started, else returns 0.
WHALE_EXPORT int whale_find_world(int* rank, int* size) {
  const whale::Communicator* world = whale::World();
  if (world == nullptr) return 0;
  *rank = world->rank();
  *size = world->size();
  return 1;
}
