// Started by mpiexec with the path of libmpi_abi.so.1 and the name of a failure: what goes wrong between processes ends
// each rank's calls, and the process, in bounded time.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/communicator/world.h"
#include "tests/kernels/checks.h"

namespace whale {
namespace {

constexpr char kReason[] = "rank 1 died";

// What a call that failed points at must stay for ever: world.h asks for it.
Piece KeptPiece(int64_t count) {
  static auto* const kept = new std::vector<std::unique_ptr<std::vector<float>>>;
  kept->push_back(std::make_unique<std::vector<float>>(count, 1.0f));
  return {kept->back()->data(), kept->back()->data(), count};
}

void AllReduce(int64_t id, int64_t count, Outcome* outcome) {
  std::vector<int> ranks;
  for (int rank = 0; rank < World()->size(); ++rank) ranks.push_back(rank);
  World()->AllReduce({"grads " + std::to_string(id), ranks}, DataType::kFloat32, Reduction::kSum, 1.0, {KeptPiece(count)},
                     outcome->done());
}

void Meet() {
  Outcome outcome;
  AllReduce(1, 1, &outcome);
  CheckOk(outcome.Wait());
}

void AbortSoon() {
  std::thread([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    AbortWorld(kReason);
  }).detach();
}

// Small lists go in one message and large ones in several: the ranks need not agree which.
void Mismatch(int rank) {
  Outcome large, mixed;
  AllReduce(2, 1000000 + rank, &large);
  CHECK(large.Wait().code() == Code::kInvalidArgument);
  AllReduce(3, rank == 0 ? 5 : 1000000, &mixed);
  const Status status = mixed.Wait();
  CHECK(status.code() == Code::kInvalidArgument);
  CHECK(status.message().find("float32 [5] and rank 1 gives float32 [1000000]") != std::string::npos);
}

void Late(int rank) {
  if (rank == 1) return std::this_thread::sleep_for(std::chrono::seconds(1));
  SetWorldTimeout(0.3);
  Outcome small, large;
  AllReduce(2, 5, &small);
  AllReduce(3, 1000000, &large);
  const std::string said = "all-reduce 'grads 2' waited 0.3 s for rank 1.\n  rank 0: all-reduce 'grads ";
  CHECK_SAME(small.Wait().message().substr(0, said.size()), said);
  CHECK(large.Wait().code() == Code::kDeadlineExceeded);
}

void Cancelled(int rank) {
  if (rank == 1) return std::this_thread::sleep_for(std::chrono::seconds(1));
  Outcome outcome;
  AllReduce(2, 1000000, &outcome);
  World()->Cancel({"grads 2", {}}, Status(Code::kCancelled, "the step has ended"));
  CHECK_SAME(outcome.Wait().message(), "the step has ended");
}

void Killed(int rank) {
  Outcome first, second, later;
  AllReduce(2, 10000000, &first);  // under way when the rank dies
  if (rank == 1) kill(getpid(), SIGKILL);
  AllReduce(3, 5, &second);
  AbortSoon();
  // MPI may notice by itself, or not.
  CHECK(second.Wait().code() == Code::kUnavailable);
  CHECK(first.Wait().code() == Code::kUnavailable);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  AllReduce(4, 5, &later);
  CHECK_SAME(later.Wait().message(), kReason);
}

// A rank that has much to do after its last call: the others do not wait for it for ever, nor end it.
void Slow(int rank) {
  if (rank == 0) std::this_thread::sleep_for(std::chrono::seconds(14));
}

// More bytes than one of MPI's messages carries.
void Large(int rank) {
  const int64_t count = (int64_t{1} << 30) + 12345;
  std::vector<char> data(count, 0);
  Outcome outcome;
  if (rank == 0) {
    data.front() = data[int64_t{1} << 30] = data.back() = 7;
    World()->Send({"large", {}}, 1, {DataType::kBytes, {count}}, data.data(), outcome.done());
  } else if (rank == 1) {
    World()->Receive({"large", {}}, 0, [&](const Header&) { return data.data(); }, outcome.done());
  } else {
    return;
  }
  CheckOk(outcome.Wait());
  CHECK(data.front() == 7 && data[1] == 0 && data[int64_t{1} << 30] == 7 && data.back() == 7);
}

// Rank 1 never starts: the others' StartWorld ends when they hear so, and not before.
void NobodyComes(const char* library, int own) {
  if (own == 1) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    return;
  }
  AbortSoon();
  int rank = 0, size = 0;
  const Status status = StartWorld(library, &rank, &size);
  CHECK(status.code() == Code::kUnavailable);
  CHECK_SAME(status.message(), kReason);
  StopWorld();
}

}  // namespace
}  // namespace whale

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string failure = argv[2];
  signal(SIGUSR1, SIG_IGN);  // mpiexec's word that a process died, which would end this one
  whale::SetWorldTimeout(50);
  int rank = 0, size = 0;
  if (failure == "absent") {
    const char* own = std::getenv("PMI_RANK");
    if (own == nullptr) return 2;
    whale::NobodyComes(argv[1], std::atoi(own));
    std::printf("absent as expected\n");
    return 0;
  }
  whale::CheckOk(whale::StartWorld(argv[1], &rank, &size));
  whale::Meet();
  const std::map<std::string, void (*)(int)> failures = {{"mismatch", whale::Mismatch}, {"late", whale::Late},
                                                         {"cancelled", whale::Cancelled}, {"killed", whale::Killed},
                                                         {"large", whale::Large},
                                                         {"slow", whale::Slow}};
  failures.at(failure)(rank);
  whale::StopWorld();
  std::printf("%s as expected\n", failure.c_str());
  return 0;
}
