// Every collective equals the naive reference, over memory and over messages, for 1 to 4 ranks.

#include "tests/kernels/cases.h"
#include "tests/kernels/messages.h"
#include "tests/kernels/worlds.h"

namespace whale {
namespace {

template <typename World>
void RunAll(const World& world, int size) {
  const std::vector<Case> cases = CasesFor(size);
  RunRanks(world, size, [&](Communicator* communicator) {
    RunCases(communicator, cases, 1, 0);
    // Begun in an order of each rank's own: what is ready first goes first.
    RunCases(communicator, cases, 16, 1000);
    RunMessages(communicator);
  });
}

void CallsOfOneIdPairUpInOrder(Communicator* communicator) {
  constexpr int kCalls = 20;
  std::vector<int> ranks;
  for (int rank = 0; rank < communicator->size(); ++rank) ranks.push_back(rank);
  std::vector<int64_t> values(kCalls);
  std::vector<Outcome> outcomes(kCalls);
  for (int k = 0; k < kCalls; ++k) {
    values[k] = 100 * k + communicator->rank();
    communicator->AllReduce({"again", 7, 0, ranks}, DataType::kInt64, Reduction::kMax, 1.0,
                            {{&values[k], &values[k], 1}}, outcomes[k].done());
  }
  for (int k = 0; k < kCalls; ++k) {
    CheckOk(outcomes[k].Wait());
    CHECK(values[k] == 100 * k + communicator->size() - 1);
  }
}

}  // namespace
}  // namespace whale

int main() {
  for (const int size : {1, 2, 3, 4}) {
    whale::Pool pool;
    {
      whale::MemoryWorld memory(size, [&](std::function<void()> closure) { pool.Run(std::move(closure)); });
      whale::RunAll(memory, size);
      whale::RunRanks(memory, size, whale::CallsOfOneIdPairUpInOrder);
    }
    whale::LoopWorld loop(size);
    whale::RunAll(loop, size);
    whale::RunRanks(loop, size, whale::CallsOfOneIdPairUpInOrder);
  }
  whale::MemoryWorld alone(3);
  whale::RunAll(alone, 3);
  return 0;
}
