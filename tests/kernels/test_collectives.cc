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

// Values that each rank sums under several labels at once, begun in an order of its own.
struct Sums {
  explicit Sums(Communicator* communicator) : communicator(communicator), values(kCalls), outcomes(kCalls) {
    for (int rank = 0; rank < communicator->size(); ++rank) ranks.push_back(rank);
  }
  void Begin(int k, const Call& call) {
    values[k] = 100 * k + communicator->rank();
    communicator->AllReduce(call, DataType::kInt64, Reduction::kMax, 1.0, {{&values[k], &values[k], 1}},
                            outcomes[k].done());
  }
  void Check(int k) {
    CheckOk(outcomes[k].Wait());
    CHECK(values[k] == 100 * k + communicator->size() - 1);
  }
  int Own(int k) const { return communicator->rank() % 2 == 0 ? k : kCalls - 1 - k; }

  static constexpr int kCalls = 20;
  Communicator* communicator;
  std::vector<int> ranks;
  std::vector<int64_t> values;
  std::vector<Outcome> outcomes;
};

void CallsMeetByTheirLabels(Communicator* communicator) {
  Sums sums(communicator);
  for (int k = 0; k < Sums::kCalls; ++k) {
    sums.Begin(sums.Own(k), {"sum " + std::to_string(sums.Own(k)), sums.ranks});
  }
  for (int k = 0; k < Sums::kCalls; ++k) sums.Check(k);
}

void IterationsMeetInAnyOrder(Communicator* communicator) {
  Sums sums(communicator);
  for (int k = 0; k < Sums::kCalls; ++k) {
    Call call{"loop", sums.ranks, 7};
    call.iteration = sums.Own(k);
    sums.Begin(sums.Own(k), call);
  }
  for (int k = 0; k < Sums::kCalls; ++k) sums.Check(k);
}

void NumbersMeetInAnyOrderAgainAndAgain(Communicator* communicator) {
  for (int round = 0; round < 3; ++round) {
    Sums sums(communicator);
    for (int k = 0; k < Sums::kCalls; ++k) {
      Call call{"numbered", sums.ranks, kAnyStep};
      call.iteration = sums.Own(k);
      sums.Begin(sums.Own(k), call);
    }
    for (int k = 0; k < Sums::kCalls; ++k) sums.Check(k);
  }
}

void CallsOfOneLabelMeetInTheirOrder(Communicator* communicator) {
  Sums sums(communicator);
  for (int k = 0; k < Sums::kCalls; ++k) {
    // Twice in a step; the numbers of steps are each rank's own.
    sums.Begin(k, {"again", sums.ranks, communicator->rank() + k / 2});
    sums.Check(k);
  }
}

void DetachedMessagesMayBeAhead(Communicator* communicator) {
  if (communicator->size() == 1 || communicator->rank() > 1) return;
  std::vector<int64_t> values(Sums::kCalls);
  std::vector<Outcome> outcomes(Sums::kCalls);
  for (int k = 0; k < Sums::kCalls; ++k) {
    Call call{"message", {}, k};
    if (communicator->rank() == 0) {
      values[k] = 100 * k;
      call.detached = true;
      communicator->Send(call, 1, {DataType::kInt64, {}}, &values[k], outcomes[k].done());
    } else {
      // In a world of memory a step is the same for all its ranks.
      communicator->Receive(call, 0, [&, k](const Header&) { return &values[k]; }, outcomes[k].done());
      CheckOk(outcomes[k].Wait());
      CHECK(values[k] == 100 * k);
    }
  }
  for (int k = 0; k < Sums::kCalls && communicator->rank() == 0; ++k) CheckOk(outcomes[k].Wait());
}

}  // namespace
}  // namespace whale

int main() {
  for (const int size : {1, 2, 3, 4}) {
    whale::Pool pool;
    {
      whale::MemoryWorld memory(size, [&](std::function<void()> closure) { pool.Run(std::move(closure)); });
      whale::RunAll(memory, size);
      whale::RunRanks(memory, size, whale::CallsMeetByTheirLabels);
      whale::RunRanks(memory, size, whale::IterationsMeetInAnyOrder);
      whale::RunRanks(memory, size, whale::NumbersMeetInAnyOrderAgainAndAgain);
      whale::RunRanks(memory, size, whale::DetachedMessagesMayBeAhead);
    }
    whale::LoopWorld loop(size);
    whale::RunAll(loop, size);
    whale::RunRanks(loop, size, whale::CallsMeetByTheirLabels);
    whale::RunRanks(loop, size, whale::IterationsMeetInAnyOrder);
    whale::RunRanks(loop, size, whale::NumbersMeetInAnyOrderAgainAndAgain);
    whale::RunRanks(loop, size, whale::CallsOfOneLabelMeetInTheirOrder);
    whale::RunRanks(loop, size, whale::DetachedMessagesMayBeAhead);
  }
  whale::MemoryWorld alone(3);
  whale::RunAll(alone, 3);
  return 0;
}
