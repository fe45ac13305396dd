// A barrier between processes, by dissemination: in round k each rank tells the one 2^k further and hears from the one
// 2^k before it. After log2(n) rounds everyone has heard of everyone.

#include <utility>

#include "kernels/communicator/operation.h"

namespace whale {
namespace {

class Barrier : public Operation {
 public:
  Barrier(CollectiveCall call, int rank) : call_(std::move(call)), place_(PlaceOf(rank, call_.call.ranks)) {}

  std::string title() const override { return Title(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    const std::vector<int>& ranks = call_.call.ranks;
    const int size = static_cast<int>(ranks.size());
    for (; distance_ < size; distance_ *= 2) {
      from_ = ranks[(place_ - distance_ + size) % size];
      const int to = ranks[(place_ + distance_) % size];
      if (send_ == nullptr) {
        send_ = engine.transport->Send(to, TagOf(call_.call.id, kWaves), &told_, 1);
        receive_ = engine.transport->Receive(from_, TagOf(call_.call.id, kWaves), &heard_, 1);
      }
      if (!send_->done || !receive_->done) return Status();
      Status status = Taken(*send_, to, -1);
      if (status.ok()) status = Taken(*receive_, from_, 1);
      if (!status.ok()) return status;
      send_ = receive_ = nullptr;
    }
    *over = true;
    return Status();
  }

  std::vector<int> WaitsFor() const override { return {from_}; }

 private:
  const CollectiveCall call_;
  const int place_;
  int distance_ = 1;
  int from_ = -1;
  char told_ = 0;
  char heard_ = 0;
  std::shared_ptr<Transfer> send_;
  std::shared_ptr<Transfer> receive_;
};

}  // namespace

std::unique_ptr<Operation> MakeBarrier(CollectiveCall call, int rank) {
  return std::make_unique<Barrier>(std::move(call), rank);
}

}  // namespace whale
