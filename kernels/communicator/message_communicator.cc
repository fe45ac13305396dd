#include "kernels/communicator/message_communicator.h"

#include <utility>

#include "kernels/communicator/progress.h"

namespace whale {
namespace {

// A world that is left without a word has this long for its calls in flight.
constexpr double kStopSeconds = 5;

}  // namespace

Status MessageCommunicator::Make(Start start, double timeout_seconds, std::unique_ptr<MessageCommunicator>* made) {
  auto progress = std::make_shared<Progress>();
  Status status = progress->Run(std::move(start), timeout_seconds);
  if (status.ok()) made->reset(new MessageCommunicator(std::move(progress)));
  return status;
}

MessageCommunicator::MessageCommunicator(std::shared_ptr<Progress> progress)
    : progress_(std::move(progress)), rank_(progress_->rank()), size_(progress_->size()) {}

MessageCommunicator::~MessageCommunicator() { Stop(kStopSeconds); }

void MessageCommunicator::Begin(MakeCollective make, CollectiveCall call, Done done) {
  const Status status = CheckCall(call, rank_, size_);
  if (!status.ok()) return done(status);
  const Progress::Channel channel{Progress::Channel::kCollective, call.call.id, -1};
  const int64_t step = call.call.step;
  progress_->Add({channel, step, make(std::move(call), rank_), std::move(done), -1, {}});
}

void MessageCommunicator::Begin(const char* kind, const Call& call, int peer, std::unique_ptr<Operation> operation,
                                Done done) {
  const std::string title = std::string(kind) + " '" + call.op + "': ";
  if (peer < 0 || peer >= size_) {
    return done(Status(Code::kInvalidArgument, title + "there is no rank " + std::to_string(peer) +
                                                   " in a world of " + std::to_string(size_) + "."));
  }
  if (call.id < 0 || call.id >= int64_t{1} << 26) {
    return done(Status(Code::kInvalidArgument,
                       title + "its id " + std::to_string(call.id) + " is not between 0 and 2^26 - 1."));
  }
  const auto direction = kind[0] == 's' ? Progress::Channel::kSend : Progress::Channel::kReceive;
  progress_->Add({{direction, call.id, peer}, call.step, std::move(operation), std::move(done), -1, {}});
}

void MessageCommunicator::AllReduce(const Call& call, DataType type, Reduction reduction, double scale,
                                    std::vector<Piece> pieces, Done done) {
  Begin(MakeReduction, {call, Collective::kAllReduce, {type, reduction, scale}, 0, std::move(pieces)},
        std::move(done));
}

void MessageCommunicator::ReduceScatter(const Call& call, DataType type, Reduction reduction, double scale,
                                        std::vector<Piece> pieces, Done done) {
  Begin(MakeReduction, {call, Collective::kReduceScatter, {type, reduction, scale}, 0, std::move(pieces)},
        std::move(done));
}

void MessageCommunicator::AllGather(const Call& call, DataType type, std::vector<Piece> pieces, Done done) {
  Begin(MakeExchange, {call, Collective::kAllGather, {type}, 0, std::move(pieces)}, std::move(done));
}

void MessageCommunicator::AllToAll(const Call& call, DataType type, std::vector<Piece> pieces, Done done) {
  Begin(MakeExchange, {call, Collective::kAllToAll, {type}, 0, std::move(pieces)}, std::move(done));
}

void MessageCommunicator::Broadcast(const Call& call, DataType type, int root, std::vector<Piece> pieces, Done done) {
  Begin(MakeBroadcast, {call, Collective::kBroadcast, {type}, root, std::move(pieces)}, std::move(done));
}

void MessageCommunicator::Barrier(const Call& call, Done done) {
  Begin(MakeBarrier, {call, Collective::kBarrier, {DataType::kBytes}, 0, {}}, std::move(done));
}

void MessageCommunicator::Send(const Call& call, int to, const Header& header, const void* data, Done done) {
  Begin("send", call, to, MakeSend(call, to, header, data), std::move(done));
}

void MessageCommunicator::Receive(const Call& call, int from, std::function<void*(const Header&)> allocate,
                                  Done done) {
  Begin("receive", call, from, MakeReceive(call, from, std::move(allocate)), std::move(done));
}

void MessageCommunicator::Abort(const Status& status) { progress_->Abort(status); }

void MessageCommunicator::Cancel(const Call& call, const Status& status) {
  progress_->Cancel(call.id, call.step, status);
}

void MessageCommunicator::SetTimeout(double seconds) { progress_->SetTimeout(seconds); }

void MessageCommunicator::Stop(double seconds) { progress_->Stop(seconds); }

}  // namespace whale
