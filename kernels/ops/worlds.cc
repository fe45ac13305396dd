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

struct Members {
  std::string world;
  std::vector<int> ranks;
  MemoryWorld* memory = nullptr;  // null until the first call, and for processes
};

// What is known of worlds in this process. It is never destroyed: threads of TensorFlow may outlive main().
struct Registry {
  std::mutex mutex;
  std::map<std::pair<std::string, int>, std::unique_ptr<MemoryWorld>> worlds;  // by name and size
  std::vector<Members> communicators;                                         // by handle
  double timeout_seconds = 0;                                                 // 0: each world's own
};

Registry& TheRegistry() {
  static Registry* registry = new Registry;
  return *registry;
}

std::string NameOf(const std::string& world, const std::vector<int>& ranks) {
  std::string text;
  for (int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return "ranks [" + text + "] of world '" + world + "'";
}

Status Wrong(const std::string& what) { return Status(Code::kInvalidArgument, what); }

Status CheckRanks(const std::string& world, const std::vector<int>& ranks, int size) {
  std::vector<int> sorted = ranks;
  std::sort(sorted.begin(), sorted.end());
  if (sorted.front() < 0 || sorted.back() >= size) {
    return Wrong(NameOf(world, ranks) + ": ranks must be from 0 to " + std::to_string(size - 1));
  }
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return Wrong(NameOf(world, ranks) + ": each rank may be named once");
  }
  return Status();
}

// The world of memory that these members call in. The registry is locked.
MemoryWorld* WorldOf(const Members& members, const Execute& execute, Registry* registry) {
  const int size = *std::max_element(members.ranks.begin(), members.ranks.end()) + 1;
  std::unique_ptr<MemoryWorld>& world = registry->worlds[{members.world, size}];
  if (world == nullptr) {
    world = std::make_unique<MemoryWorld>(size, execute);
    if (registry->timeout_seconds > 0) world->SetTimeout(registry->timeout_seconds);
  }
  return world.get();
}

}  // namespace

Status MakeCommunicator(const std::string& world, std::vector<int> ranks, int64_t* handle) {
  int size = kMostRanks;
  if (world == kProcesses) {
    const Communicator* processes = World();
    if (processes == nullptr) return Wrong("the world of processes has not been started; call whale.init() first");
    size = processes->size();
    for (int rank = 0; ranks.empty() && rank < size; ++rank) ranks.push_back(rank);
  }
  if (ranks.empty()) return Wrong("world '" + world + "' is in this process's memory, which needs its ranks named");
  const Status status = CheckRanks(world, ranks, size);
  if (!status.ok()) return status;
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  auto same = [&](const Members& each) { return each.world == world && each.ranks == ranks; };
  std::vector<Members>& made = registry.communicators;
  const auto found = std::find_if(made.begin(), made.end(), same);
  *handle = found - made.begin();
  if (found == made.end()) made.push_back({world, std::move(ranks)});
  return Status();
}

Status FindMember(const std::string& op, const Execute& execute, const Place& place, Member* member) {
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  const auto count = static_cast<int64_t>(registry.communicators.size());
  if (place.communicator < 0 || place.communicator >= count) {
    return Wrong("'" + op + "' is called over communicator " + std::to_string(place.communicator) +
                 ", and this process has made " +
                 (count == 0 ? "none" : "those from 0 to " + std::to_string(count - 1)));
  }
  Members& members = registry.communicators[place.communicator];
  auto caller = [&] {
    return "'" + op + "' is called by member " + std::to_string(place.member) + " of " +
           NameOf(members.world, members.ranks);
  };
  if (place.member < 0 || place.member >= static_cast<int64_t>(members.ranks.size())) {
    return Wrong(caller() + ", which are the members from 0 to " + std::to_string(members.ranks.size() - 1));
  }
  if (place.number < kNotNumbered) {
    return Wrong(caller() + " with the number " + std::to_string(place.number) +
                 ", which was expected to be 0 or more, or -1 for none");
  }
  const int rank = members.ranks[place.member];
  member->ranks = members.ranks;
  member->of_processes = members.world == kProcesses;
  if (member->of_processes) {
    member->communicator = World();
    if (member->communicator->rank() == rank) return Status();
    return Wrong(caller() + ": this process is rank " + std::to_string(member->communicator->rank()));
  }
  if (members.memory == nullptr) members.memory = WorldOf(members, execute, &registry);
  member->communicator = members.memory->rank(rank);
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
