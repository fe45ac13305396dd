// Calls that do not fit, come too late, are cancelled or aborted: each ends with the whole message, on every rank.

#include "tests/kernels/worlds.h"

namespace whale {
namespace {

// Buffers of calls that failed stay for ever, as message_communicator.h asks for.
std::vector<float>* Kept(size_t count) {
  static auto* const kept = new std::vector<std::unique_ptr<std::vector<float>>>;
  kept->push_back(std::make_unique<std::vector<float>>(count, 1.0f));
  return kept->back().get();
}

Piece KeptPiece(int64_t count) { return {Kept(count)->data(), Kept(count)->data(), count}; }

template <typename World>
void AllReduce(const World& world, int rank, int64_t id, std::vector<int64_t> counts, Outcome* outcome,
               std::vector<int> ranks = {0, 1}) {
  std::vector<Piece> pieces;
  for (const int64_t count : counts) pieces.push_back(KeptPiece(count));
  world.rank(rank)->AllReduce({"grads", id, 0, ranks}, DataType::kFloat32, Reduction::kSum, 1.0, pieces,
                              outcome->done());
}

void CheckEnd(Outcome* outcome, Code code, const std::string& message) {
  const Status status = outcome->Wait();
  CHECK_SAME(status.message(), message);
  CHECK(status.code() == code);
}

template <typename World>
void ListsThatDifferAreRefused(World* world, bool by_messages) {
  const std::string start = by_messages ? "all-reduce 'grads': the calls of rank 0 and rank 1 do not fit together: "
                                        : "all-reduce 'grads': the calls of ranks 0, 1 do not fit together: ";
  const std::string other = by_messages ? "all-reduce 'grads': the calls of rank 1 and rank 0 do not fit together: "
                                        : start;
  Outcome counts[2];
  AllReduce(*world, 0, 1, {3, 100000}, &counts[0]);
  AllReduce(*world, 1, 1, {3, 100001}, &counts[1]);
  CheckEnd(&counts[0], Code::kInvalidArgument,
           start + "of tensor 1, rank 0 gives 100000 elements of float32 and rank 1 gives 100001 elements of float32.");
  CHECK(counts[1].Wait().code() == Code::kInvalidArgument);
  Outcome lengths[2];
  AllReduce(*world, 0, 2, {3}, &lengths[0]);
  AllReduce(*world, 1, 2, {3, 4}, &lengths[1]);
  CHECK(lengths[0].Wait().code() == Code::kInvalidArgument);
  CheckEnd(&lengths[1], Code::kInvalidArgument,
           other + (by_messages ? "rank 1 gives 2 tensors and rank 0 gives 1 tensor."
                                : "rank 0 gives 1 tensor and rank 1 gives 2 tensors."));
  Outcome kinds[2];
  AllReduce(*world, 0, 3, {}, &kinds[0]);
  world->rank(1)->AllGather({"grads", 3, 0, {0, 1}}, DataType::kFloat32, {}, kinds[1].done());
  CheckEnd(&kinds[0], Code::kInvalidArgument,
           start + "rank 0 gives a call of all-reduce and rank 1 gives a call of all-gather.");
  CHECK(kinds[1].Wait().code() == Code::kInvalidArgument);
}

template <typename World>
void CallsThatCannotBeAreRefused(World* world) {
  Outcome stranger, twice, nobody, far, mean;
  AllReduce(*world, 0, 1, {}, &stranger, {1});
  CheckEnd(&stranger, Code::kInvalidArgument, "all-reduce 'grads': rank 0 calls it, but it is of rank 1.");
  AllReduce(*world, 0, 1, {}, &twice, {0, 0});
  CheckEnd(&twice, Code::kInvalidArgument, "all-reduce 'grads': ranks 0, 0: each must be there once.");
  AllReduce(*world, 0, 1, {}, &nobody, {0, 9});
  CheckEnd(&nobody, Code::kInvalidArgument, "all-reduce 'grads': there is no rank 9 in a world of 4.");
  world->rank(0)->Send({"far", 1, 0, {}}, 4, {}, nullptr, far.done());
  CheckEnd(&far, Code::kInvalidArgument, "send 'far': there is no rank 4 in a world of 4.");
  world->rank(0)->AllReduce({"mean", 1, 0, {0}}, DataType::kInt32, Reduction::kMean, 1.0, {}, mean.done());
  CHECK(mean.Wait().code() == Code::kInvalidArgument);
}

template <typename World>
void TheLateAreNamed(World* world) {
  Outcome reduce, receive;
  AllReduce(*world, 0, 20, {100000}, &reduce, {3, 0, 1});
  world->rank(2)->Receive({"activation", 21, 0, {}}, 1, [](const Header&) { return nullptr; }, receive.done());
  world->SetTimeout(0.2);
  CheckEnd(&reduce, Code::kDeadlineExceeded, "all-reduce 'grads' waited 0.2 s for ranks 3, 1.");
  CheckEnd(&receive, Code::kDeadlineExceeded, "receive 'activation' waited 0.2 s for rank 1.");
  world->SetTimeout(50);
}

template <typename World>
void ACancelledCallEnds(World* world) {
  Outcome outcome;
  AllReduce(*world, 1, 30, {100000}, &outcome);
  world->rank(1)->Cancel({"other", 31, 0, {}}, Status(Code::kCancelled, "not this one"));
  world->rank(1)->Cancel({"grads", 30, 0, {0, 1}}, Status(Code::kCancelled, "the step has ended"));
  CheckEnd(&outcome, Code::kCancelled, "the step has ended");
}

template <typename World>
void OthersGoOnAfterAFailure(World* world) {
  std::vector<float> values[2] = {std::vector<float>(200000, 1.0f), std::vector<float>(200000, 2.0f)};
  Outcome outcomes[2];
  for (int rank = 0; rank < 2; ++rank) {
    float* data = values[rank].data();
    world->rank(rank)->AllReduce({"later", 40, 0, {0, 1}}, DataType::kFloat32, Reduction::kSum, 1.0,
                                 {{data, data, 200000}}, outcomes[rank].done());
  }
  for (int rank = 0; rank < 2; ++rank) {
    CheckOk(outcomes[rank].Wait());
    CHECK(values[rank].front() == 3.0f && values[rank].back() == 3.0f);
  }
}

template <typename World>
void AnAbortEndsAll(World* world) {
  Outcome flying, later;
  AllReduce(*world, 0, 50, {100000}, &flying);
  world->rank(0)->Abort(Status(Code::kUnavailable, "rank 1 died"));
  world->rank(0)->Abort(Status(Code::kUnavailable, "a second reason"));
  CheckEnd(&flying, Code::kUnavailable, "rank 1 died");
  AllReduce(*world, 0, 51, {1}, &later);
  CheckEnd(&later, Code::kUnavailable, "rank 1 died");
}

void AFailedIdStaysFailed(LoopWorld* world) {
  Outcome first, second;
  AllReduce(*world, 1, 60, {5}, &first);
  world->rank(1)->Cancel({"grads", 60, 0, {}}, Status(Code::kCancelled, "the step has ended"));
  CheckEnd(&first, Code::kCancelled, "the step has ended");
  AllReduce(*world, 1, 60, {5}, &second);
  CheckEnd(&second, Code::kCancelled, "the step has ended");
}

void WhoLeavesEndsItsCalls() {
  LoopWorld world(2);
  Outcome flying, later;
  AllReduce(world, 0, 1, {100000}, &flying);
  world.rank(0)->Stop(0.2);
  CheckEnd(&flying, Code::kUnavailable, "the world of processes was left while the call was in flight.");
  AllReduce(world, 0, 2, {1}, &later);
  CheckEnd(&later, Code::kUnavailable, "this process has left the world of processes.");
}

template <typename World>
void RunAll(World* world, bool by_messages) {
  ListsThatDifferAreRefused(world, by_messages);
  CallsThatCannotBeAreRefused(world);
  TheLateAreNamed(world);
  ACancelledCallEnds(world);
  OthersGoOnAfterAFailure(world);
  AnAbortEndsAll(world);
}

}  // namespace
}  // namespace whale

int main() {
  whale::MemoryWorld memory(4);
  whale::RunAll(&memory, false);
  whale::LoopWorld loop(4);
  whale::AFailedIdStaysFailed(&loop);
  whale::RunAll(&loop, true);
  whale::WhoLeavesEndsItsCalls();
  return 0;
}
