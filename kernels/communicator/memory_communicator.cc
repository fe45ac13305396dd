#include "kernels/communicator/memory_communicator.h"

#include <utility>

#include "kernels/communicator/memory_meetings.h"

namespace whale {
namespace {

class MemoryCommunicator : public Communicator {
 public:
  MemoryCommunicator(int rank, std::shared_ptr<MemoryMeetings> meetings)
      : rank_(rank), meetings_(std::move(meetings)) {}

  int rank() const override { return rank_; }
  int size() const override { return meetings_->size(); }

  void AllReduce(const Call& call, DataType type, Reduction reduction, double scale, std::vector<Piece> pieces,
                 Done done) override {
    Join({call, Collective::kAllReduce, {type, reduction, scale}, 0, std::move(pieces)}, std::move(done));
  }
  void ReduceScatter(const Call& call, DataType type, Reduction reduction, double scale, std::vector<Piece> pieces,
                     Rows rows, Done done) override {
    Join({call, Collective::kReduceScatter, {type, reduction, scale}, 0, std::move(pieces), std::move(rows)},
         std::move(done));
  }
  void AllGather(const Call& call, DataType type, std::vector<Piece> pieces, std::vector<int64_t> rows,
                 MakeOutputs make_outputs, Done done) override {
    Join({call, Collective::kAllGather, {type}, 0, std::move(pieces), {std::move(rows)}, std::move(make_outputs)},
         std::move(done));
  }
  void AllToAll(const Call& call, DataType type, std::vector<Piece> pieces, Done done) override {
    Join({call, Collective::kAllToAll, {type}, 0, std::move(pieces)}, std::move(done));
  }
  void Broadcast(const Call& call, DataType type, int root, std::vector<Piece> pieces, Done done) override {
    Join({call, Collective::kBroadcast, {type}, root, std::move(pieces)}, std::move(done));
  }
  void Barrier(const Call& call, Done done) override {
    Join({call, Collective::kBarrier, {DataType::kBytes}, 0, {}}, std::move(done));
  }
  void Send(const Call& call, int to, const Header& header, const void* data, Done done) override {
    meetings_->Send(rank_, call, to, header, data, std::move(done));
  }
  void Receive(const Call& call, int from, std::function<void*(const Header&)> allocate, Done done) override {
    meetings_->Receive(rank_, call, from, std::move(allocate), std::move(done));
  }
  void Abort(const Status& status) override { meetings_->Abort(status); }
  void Cancel(const Call& call, const Status& status) override { meetings_->Cancel(rank_, call, status); }

 private:
  void Join(CollectiveCall call, Done done) { meetings_->Join(rank_, std::move(call), std::move(done)); }

  const int rank_;
  const std::shared_ptr<MemoryMeetings> meetings_;
};

}  // namespace

MemoryWorld::MemoryWorld(int size, Execute execute)
    : meetings_(std::make_shared<MemoryMeetings>(size, std::move(execute))) {
  for (int rank = 0; rank < size; ++rank) ranks_.push_back(std::make_unique<MemoryCommunicator>(rank, meetings_));
}

MemoryWorld::~MemoryWorld() = default;

void MemoryWorld::SetTimeout(double seconds) { meetings_->SetTimeout(seconds); }

}  // namespace whale
