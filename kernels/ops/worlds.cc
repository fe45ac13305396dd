#include "kernels/ops/worlds.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "kernels/communicator/world.h"

namespace whale {
namespace {

constexpr int kMostRanks = 4096;  // more devices than a process has: a slip, and a world of it would take all memory

// What is known of worlds in this process. It is never destroyed: threads of TensorFlow may outlive main().
struct Registry {
  std::mutex mutex;
  std::map<std::pair<std::string, int>, std::unique_ptr<MemoryWorld>> worlds;  // by name and size
  double timeout_seconds = 0;                                                  // 0: each world's own
};

Registry& TheRegistry() {
  static Registry* registry = new Registry;
  return *registry;
}

Status Refuse(const std::string& op, const Place& place, const std::string& what) {
  std::string ranks;
  for (int rank : place.ranks) ranks += (ranks.empty() ? "" : ", ") + std::to_string(rank);
  return Status(Code::kInvalidArgument, "'" + op + "' of rank " + std::to_string(place.rank) + " among ranks [" +
                                            ranks + "] of world '" + place.world + "': " + what);
}

Status CheckRanks(const std::string& op, const Place& place, int size) {
  std::vector<int> sorted = place.ranks;
  std::sort(sorted.begin(), sorted.end());
  if (sorted.front() < 0 || sorted.back() >= size) {
    return Refuse(op, place, "ranks must be from 0 to " + std::to_string(size - 1));
  }
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return Refuse(op, place, "each rank may be named once");
  }
  if (!std::binary_search(sorted.begin(), sorted.end(), place.rank)) {
    return Refuse(op, place, "the own rank must be one of the ranks");
  }
  return Status();
}

Status FindProcess(const std::string& op, Place* place, Communicator** communicator) {
  Communicator* world = World();
  if (world == nullptr) {
    return Refuse(op, *place, "the world of processes has not been started; call whale.init() first");
  }
  if (place->rank != -1 && place->rank != world->rank()) {
    return Refuse(op, *place, "this process is rank " + std::to_string(world->rank()));
  }
  place->rank = world->rank();
  if (place->ranks.empty()) {
    for (int rank = 0; rank < world->size(); ++rank) place->ranks.push_back(rank);
  }
  *communicator = world;
  return CheckRanks(op, *place, world->size());
}

}  // namespace

Status FindCommunicator(const std::string& op, const Execute& execute, Place* place, Communicator** communicator) {
  if (place->world == kProcesses) return FindProcess(op, place, communicator);
  if (place->ranks.empty()) return Refuse(op, *place, "a world of this process's memory needs its ranks named");
  const int last = *std::max_element(place->ranks.begin(), place->ranks.end());
  if (last >= kMostRanks) {
    return Refuse(op, *place, "a world of this process's memory has at most " + std::to_string(kMostRanks) + " ranks");
  }
  const int size = last + 1;
  const Status status = CheckRanks(op, *place, size);
  if (!status.ok()) return status;
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  std::unique_ptr<MemoryWorld>& world = registry.worlds[{place->world, size}];
  if (world == nullptr) {
    world = std::make_unique<MemoryWorld>(size, execute);
    if (registry.timeout_seconds > 0) world->SetTimeout(registry.timeout_seconds);
  }
  *communicator = world->rank(place->rank);
  return Status();
}

void SetTimeouts(double seconds) {
  SetWorldTimeout(seconds);
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  registry.timeout_seconds = seconds;
  for (auto& named : registry.worlds) named.second->SetTimeout(seconds);
}

}  // namespace whale
