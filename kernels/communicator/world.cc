#include "kernels/communicator/world.h"

#include <mutex>

#include "kernels/communicator/message_communicator.h"
#include "kernels/communicator/mpi_transport.h"
#include "kernels/communicator/progress.h"

namespace whale {
namespace {

// For calls in flight; a process whose world was aborted has nothing to wait for.
constexpr double kStopSeconds = 5;
constexpr double kAbortedStopSeconds = 1;

struct ProcessWorld {
  std::mutex starting;  // held while MPI starts, which may take long; the rest must stay usable
  std::mutex mutex;     // of what follows; taken after `starting`
  MessageCommunicator* communicator = nullptr;  // never deleted: kernels hold it
  std::shared_ptr<Progress> progress;            // there from when it begins to start
  bool aborted = false;
  bool stopped = false;
  Status failed;  // why it could not start
  double timeout = 300;
};

ProcessWorld& TheWorld() {
  static ProcessWorld* const world = new ProcessWorld;
  return *world;
}

MessageCommunicator* Current() {
  ProcessWorld& world = TheWorld();
  std::lock_guard<std::mutex> lock(world.mutex);
  return world.communicator;
}

}  // namespace

Status StartWorld(const std::string& mpi_library, int* rank, int* size) {
  ProcessWorld& world = TheWorld();
  std::lock_guard<std::mutex> starting(world.starting);
  std::unique_lock<std::mutex> lock(world.mutex);
  if (world.stopped) {
    return Status(Code::kUnavailable, "this process has left its world, and MPI cannot be started a second time.");
  }
  if (!world.failed.ok()) return world.failed;
  if (world.communicator == nullptr) {
    const double timeout = world.timeout;
    auto progress = world.progress = std::make_shared<Progress>();
    lock.unlock();
    auto start = [mpi_library](std::unique_ptr<Transport>* transport) {
      return MpiTransport::Start(mpi_library, transport);
    };
    const Status status = progress->Run(start, timeout);
    lock.lock();
    if (!status.ok()) {
      // Where the library was not even loaded, another path may do.
      if (status.code() == Code::kDeadlineExceeded || world.aborted) world.failed = status;
      world.progress = nullptr;
      return status;
    }
    world.communicator = new MessageCommunicator(std::move(progress));
    world.communicator->SetTimeout(world.timeout);
  }
  *rank = world.communicator->rank();
  *size = world.communicator->size();
  return Status();
}

Communicator* World() { return Current(); }

void SetWorldTimeout(double seconds) {
  ProcessWorld& world = TheWorld();
  std::lock_guard<std::mutex> lock(world.mutex);
  world.timeout = seconds;
  if (world.communicator != nullptr) world.communicator->SetTimeout(seconds);
}

void AbortWorld(const std::string& message) {
  ProcessWorld& world = TheWorld();
  std::lock_guard<std::mutex> lock(world.mutex);
  if (world.progress == nullptr) return;
  world.aborted = true;
  world.progress->Abort(Status(Code::kUnavailable, message));
}

void StopWorld() {
  ProcessWorld& world = TheWorld();
  bool aborted = false;
  {
    std::lock_guard<std::mutex> lock(world.mutex);
    world.stopped = world.communicator != nullptr;
    aborted = world.aborted;
  }
  MessageCommunicator* communicator = Current();
  if (communicator != nullptr) communicator->Stop(aborted ? kAbortedStopSeconds : kStopSeconds);
}

}  // namespace whale
