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
  world.rank(rank)->AllReduce({"grads " + std::to_string(id), ranks}, DataType::kFloat32, Reduction::kSum, 1.0, pieces,
                              outcome->done());
}

void CheckEnd(Outcome* outcome, Code code, const std::string& message) {
  const Status status = outcome->Wait();
  CHECK_SAME(status.message(), message);
  CHECK(status.code() == code);
}

void CheckSays(Outcome* outcome, Code code, const std::string& part) {
  const Status status = outcome->Wait();
  if (status.message().find(part) == std::string::npos) CHECK_SAME(status.message(), "... " + part + " ...");
  CHECK(status.code() == code);
}

template <typename World>
void ListsThatDifferAreRefused(World* world, bool by_messages) {
  const std::string start = by_messages ? ": the calls of rank 0 and rank 1 do not fit together: "
                                        : ": the calls of ranks 0, 1 do not fit together: ";
  Outcome counts[2];
  AllReduce(*world, 0, 1, {3, 100000}, &counts[0]);
  AllReduce(*world, 1, 1, {3, 100001}, &counts[1]);
  for (Outcome& outcome : counts) {
    CheckSays(&outcome, Code::kInvalidArgument, "float32 [3], [100000] and rank 1 gives float32 [3], [100001]");
  }
  Outcome lengths[2];
  AllReduce(*world, 0, 2, {3}, &lengths[0]);
  AllReduce(*world, 1, 2, {3, 4}, &lengths[1]);
  CheckSays(&lengths[0], Code::kInvalidArgument, "1 tensor and rank 1 gives 2 tensors");
  CheckSays(&lengths[1], Code::kInvalidArgument, "do not fit together");
  Outcome kinds[2];
  AllReduce(*world, 0, 3, {}, &kinds[0]);
  world->rank(1)->AllGather({"grads 3", {0, 1}}, DataType::kFloat32, {}, {}, {}, kinds[1].done());
  CheckSays(&kinds[0], Code::kInvalidArgument,
            start + "rank 0 gives a call of all-reduce and rank 1 gives a call of all-gather");
  CheckSays(&kinds[1], Code::kInvalidArgument, "all-gather");
  Outcome barriers[2];
  world->rank(0)->Barrier({"grads 4", {0, 1}}, barriers[0].done());
  AllReduce(*world, 1, 4, {5}, &barriers[1]);
  CheckSays(&barriers[0], Code::kInvalidArgument, "a call of all-reduce");
  CheckSays(&barriers[1], Code::kInvalidArgument, "a call of barrier");
}

template <typename World>
void ShapesOfEqualSizeAreTold(World* world) {
  Outcome outcomes[2];
  for (int rank = 0; rank < 2; ++rank) {
    Call call{"shapes", {0, 1}};
    call.tensors = rank == 0 ? "float [2,3]" : "float [3,2]";
    world->rank(rank)->AllReduce(call, DataType::kFloat32, Reduction::kSum, 1.0, {KeptPiece(6)},
                                 outcomes[rank].done());
  }
  for (Outcome& outcome : outcomes) {
    CheckSays(&outcome, Code::kInvalidArgument, "float [2,3]");
    CheckSays(&outcome, Code::kInvalidArgument, "float [3,2]");
  }
}

void Gather(Communicator* communicator, const Call& call, size_t tensors, const Status& made, Outcome* outcome) {
  auto make_outputs = [tensors, made](const Rows&, std::vector<void*>* outputs) {
    for (size_t i = 0; i < tensors; ++i) outputs->push_back(KeptPiece(4).out);
    return made;
  };
  communicator->AllGather(call, DataType::kFloat32, std::vector<Piece>(tensors, KeptPiece(1)),
                          std::vector<int64_t>(tensors, 2), make_outputs, outcome->done());
}

// Between processes a rank that has all it needs may have ended before it is told of another's failure.
template <typename World>
void AGatherWithoutRoomEndsOnAllRanks(World* world, bool by_messages) {
  Outcome outcomes[2];
  for (int rank = 0; rank < 2; ++rank) {
    const Status made = rank == 0 ? Status() : Status(Code::kInternal, "no memory.");
    Gather(world->rank(rank), {"no room", {0, 1}}, 1, made, &outcomes[rank]);
  }
  CheckSays(&outcomes[1], Code::kInternal, "no memory.");
  if (!by_messages || !outcomes[0].Wait().ok()) CheckSays(&outcomes[0], Code::kInternal, "no memory.");
}

template <typename World>
void AGatherOfTooManyTensorsIsRefused(World* world) {
  Outcome outcome;
  Gather(world->rank(0), {"many", {0}}, 8193, Status(), &outcome);
  CheckEnd(&outcome, Code::kInvalidArgument,
           "all-gather 'many': 8193 tensors are given, and at most 8192 are possible.");
}

template <typename World>
void PartsThatDifferAreTold(World* world) {
  Outcome outcomes[2];
  for (int rank = 0; rank < 2; ++rank) {
    const Rows rows = rank == 0 ? Rows{{1}, {2}} : Rows{{2}, {1}};
    Call call{"parts", {0, 1}};
    call.tensors = "float [3]";
    world->rank(rank)->ReduceScatter(call, DataType::kFloat32, Reduction::kSum, 1.0, {KeptPiece(1)}, rows,
                                     outcomes[rank].done());
  }
  for (Outcome& outcome : outcomes) {
    CheckSays(&outcome, Code::kInvalidArgument,
              "rank 0 gives float [3] in parts of 1+2 and rank 1 gives float [3] in parts of 2+1");
  }
}

template <typename World>
void CallsThatCannotBeAreRefused(World* world) {
  Outcome stranger, twice, nobody, far, mean;
  AllReduce(*world, 0, 1, {}, &stranger, {1});
  CheckEnd(&stranger, Code::kInvalidArgument, "all-reduce 'grads 1': rank 0 calls it, but it is of rank 1.");
  AllReduce(*world, 0, 1, {}, &twice, {0, 0});
  CheckEnd(&twice, Code::kInvalidArgument, "all-reduce 'grads 1': ranks 0, 0: each must be there once.");
  AllReduce(*world, 0, 1, {}, &nobody, {0, 9});
  CheckEnd(&nobody, Code::kInvalidArgument, "all-reduce 'grads 1': there is no rank 9 in a world of 4.");
  world->rank(0)->Send({"far", {}}, 4, {}, nullptr, far.done());
  CheckEnd(&far, Code::kInvalidArgument, "send 'far': there is no rank 4 in a world of 4.");
  world->rank(0)->AllReduce({"mean", {0}}, DataType::kInt32, Reduction::kMean, 1.0, {}, mean.done());
  CHECK(mean.Wait().code() == Code::kInvalidArgument);
}

template <typename World>
void TheLateAreNamed(World* world) {
  Outcome reduce, receive;
  AllReduce(*world, 0, 20, {100000}, &reduce, {3, 0, 1});
  world->rank(2)->Receive({"activation", {}}, 1, [](const Header&) { return nullptr; }, receive.done());
  world->SetTimeout(0.2);
  CheckSays(&reduce, Code::kDeadlineExceeded, "all-reduce 'grads 20' waited 0.2 s for ranks 3, 1.\n  rank 0: ");
  CheckSays(&reduce, Code::kDeadlineExceeded, "rank 0: all-reduce 'grads 20' of float32 [100000], sum, for ");
  CheckSays(&reduce, Code::kDeadlineExceeded, "\n  rank 1: in no call\n");
  CheckSays(&receive, Code::kDeadlineExceeded, "receive 'activation' waited 0.2 s for rank 1.\n");
  CheckSays(&receive, Code::kDeadlineExceeded, "\n  rank 2: receive 'activation', for ");
  world->SetTimeout(50);
}

// Each rank waits in another call: both errors name both.
void WhoeverWaitsElsewhereIsListed(LoopWorld* world) {
  Outcome one, other;
  AllReduce(*world, 0, 21, {3}, &one);
  AllReduce(*world, 1, 22, {4}, &other);
  world->SetTimeout(0.2);
  for (Outcome* outcome : {&one, &other}) {
    CheckSays(outcome, Code::kDeadlineExceeded, "\n  rank 0: all-reduce 'grads 21' of float32 [3], sum, for ");
    CheckSays(outcome, Code::kDeadlineExceeded, "\n  rank 1: all-reduce 'grads 22' of float32 [4], sum, for ");
  }
  world->SetTimeout(50);
}

void CheckSum(Communicator* first, Communicator* second, const Call& call) {
  std::vector<float> values[2] = {std::vector<float>(200000, 1.0f), std::vector<float>(200000, 2.0f)};
  Outcome outcomes[2];
  for (int rank = 0; rank < 2; ++rank) {
    float* data = values[rank].data();
    (rank == 0 ? first : second)
        ->AllReduce(call, DataType::kFloat32, Reduction::kSum, 1.0, {{data, data, 200000}}, outcomes[rank].done());
  }
  for (int rank = 0; rank < 2; ++rank) {
    CheckOk(outcomes[rank].Wait());
    CHECK(values[rank].front() == 3.0f && values[rank].back() == 3.0f);
  }
}

// A cancelled call ends on all its ranks, and nothing else does.
template <typename World>
void ACancelledCallEnds(World* world, bool by_messages) {
  Outcome outcomes[2], other;
  AllReduce(*world, 0, 31, {100000}, &other);
  AllReduce(*world, 1, 30, {100000}, &outcomes[1]);
  world->rank(1)->Cancel({"other", {}}, Status(Code::kCancelled, "not this one"));
  world->rank(1)->Cancel({"grads 31", {0, 1}, 5}, Status(Code::kCancelled, "not this step"));
  world->rank(1)->Cancel({"grads 30", {0, 1}, 0, 7}, Status(Code::kCancelled, "not this number"));
  world->rank(1)->Cancel({"grads 31", {0, 1}}, Status(Code::kCancelled, "not this rank's call"));
  world->rank(1)->Cancel({"grads 30", {0, 1}}, Status(Code::kCancelled, "the step has ended"));
  CheckEnd(&outcomes[1], Code::kCancelled, "the step has ended");
  CheckSum(world->rank(0), world->rank(1), {"between", {0, 1}});  // what rank 1 has said before it is heard
  if (by_messages) {  // in memory the ranks have one step, which is cancelled as a whole
    AllReduce(*world, 0, 30, {100000}, &outcomes[0]);
    CheckEnd(&outcomes[0], Code::kUnavailable, "rank 1 has ended the call: the step has ended");
  }
  CHECK(!other.ended());
  Outcome another;
  AllReduce(*world, 1, 31, {100000}, &another);
  CheckOk(another.Wait());
  CheckOk(other.Wait());
  CheckSum(world->rank(0), world->rank(1), {"grads 30", {0, 1}, 1});  // the same label again
}

// Two threads that call one function: nobody can tell which of the two the other rank makes.
template <typename World>
void ACallBesideItselfIsRefused(World* world, bool by_messages) {
  Outcome first, second, there;
  AllReduce(*world, 0, 35, {5}, &first);
  AllReduce(*world, 0, 35, {5}, &second);
  const std::string said = "all-reduce 'grads 35': rank 0 calls it while";
  CheckSays(&first, Code::kInvalidArgument, said);
  CheckSays(&second, Code::kInvalidArgument, said);
  CheckSum(world->rank(0), world->rank(1), {"between", {0, 1}});
  if (by_messages) {
    AllReduce(*world, 1, 35, {5}, &there);
    CheckSays(&there, Code::kInvalidArgument, "rank 0 has ended the call: " + said);
  }
  CheckSum(world->rank(0), world->rank(1), {"grads 35", {0, 1}, 1});
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
  ShapesOfEqualSizeAreTold(world);
  PartsThatDifferAreTold(world);
  AGatherWithoutRoomEndsOnAllRanks(world, by_messages);
  AGatherOfTooManyTensorsIsRefused(world);
  CallsThatCannotBeAreRefused(world);
  TheLateAreNamed(world);
  ACancelledCallEnds(world, by_messages);
  ACallBesideItselfIsRefused(world, by_messages);
  CheckSum(world->rank(0), world->rank(1), {"later", {0, 1}});
  AnAbortEndsAll(world);
}

}  // namespace
}  // namespace whale

int main() {
  whale::MemoryWorld memory(4);
  whale::RunAll(&memory, false);
  whale::LoopWorld loop(4);
  whale::RunAll(&loop, true);
  whale::LoopWorld waiting(2);
  whale::WhoeverWaitsElsewhereIsListed(&waiting);
  whale::WhoLeavesEndsItsCalls();
  return 0;
}
