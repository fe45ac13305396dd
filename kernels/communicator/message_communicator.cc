#include "kernels/communicator/message_communicator.h"

#include <utility>

#include "kernels/communicator/agreement.h"
#include "kernels/communicator/progress.h"

namespace whale {
namespace {

// A world that is left without a word has this long for its calls in flight.
constexpr double kStopSeconds = 5;

// What keys begin with: a collective and a message may have one label.
constexpr uint64_t kCollectives = 1;
constexpr uint64_t kMessages = 2;

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
  uint64_t key = Hash(call.call.label.digest, kCollectives);
  for (const int rank : call.call.ranks) key = Hash(key, static_cast<uint64_t>(rank));
  auto begin = [&](const Admission& own) { return make(std::move(call), rank_, own); };
  progress_->Add(key, call.call, Title(call), OthersOf(call, rank_), begin, std::move(done));
}

void MessageCommunicator::Begin(const char* kind, const Call& call, int from, int to, const MakeMessage& make,
                                Done done) {
  const std::string title = std::string(kind) + " '" + call.label.text + "'";
  const int peer = from == rank_ ? to : from;
  if (peer < 0 || peer >= size_) {
    return done(Status(Code::kInvalidArgument, title + ": there is no rank " + std::to_string(peer) +
                                                   " in a world of " + std::to_string(size_) + "."));
  }
  if (peer == rank_) return done(Status(Code::kInvalidArgument, title + ": a rank has no messages for itself."));
  const uint64_t key = Hash(Hash(Hash(call.label.digest, kMessages), static_cast<uint64_t>(from)),
                            static_cast<uint64_t>(to));
  progress_->Add(key, call, title, {peer}, make, std::move(done));
}

void MessageCommunicator::AllReduce(const Call& call, DataType type, Reduction reduction, double scale,
                                    std::vector<Piece> pieces, Done done) {
  Begin(MakeReduction, {call, Collective::kAllReduce, {type, reduction, scale}, 0, std::move(pieces)},
        std::move(done));
}

void MessageCommunicator::ReduceScatter(const Call& call, DataType type, Reduction reduction, double scale,
                                        std::vector<Piece> pieces, Rows rows, Done done) {
  Begin(MakeReduction,
        {call, Collective::kReduceScatter, {type, reduction, scale}, 0, std::move(pieces), std::move(rows)},
        std::move(done));
}

void MessageCommunicator::AllGather(const Call& call, DataType type, std::vector<Piece> pieces,
                                    std::vector<int64_t> rows, MakeOutputs make_outputs, Done done) {
  Begin(MakeExchange,
        {call, Collective::kAllGather, {type}, 0, std::move(pieces), {std::move(rows)}, std::move(make_outputs)},
        std::move(done));
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
  auto make = [&](const Admission& own) { return MakeSend(call, to, header, data, own); };
  Begin("send", call, rank_, to, make, std::move(done));
}

void MessageCommunicator::Receive(const Call& call, int from, std::function<void*(const Header&)> allocate,
                                  Done done) {
  auto make = [&](const Admission& own) { return MakeReceive(call, from, std::move(allocate), own); };
  Begin("receive", call, from, rank_, make, std::move(done));
}

void MessageCommunicator::Abort(const Status& status) { progress_->Abort(status); }

void MessageCommunicator::Cancel(const Call& call, const Status& status) {
  progress_->Cancel(call, status);
}

void MessageCommunicator::SetTimeout(double seconds) { progress_->SetTimeout(seconds); }

void MessageCommunicator::Stop(double seconds) { progress_->Stop(seconds); }

}  // namespace whale
