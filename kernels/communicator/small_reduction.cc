// All-reduce of few bytes between processes: one round. Each rank sends what it brings, offer and data in one message,
// to all others, and reduces by itself, in the order of the ranks, so that all get the same bits.
//
//   rank 0  ──offer, data──▶ rank 1        rank 0  ◀──offer, data── rank 1        both reduce

#include <cstring>
#include <utility>

#include "kernels/communicator/agreement.h"
#include "kernels/communicator/small_reduction.h"

namespace whale {
namespace {

class SmallReduction : public Operation {
 public:
  SmallReduction(CollectiveCall call, int rank, const Admission& own)
      : call_(std::move(call)),
        place_(PlaceOf(rank, call_.call.ranks)),
        packed_(Packed(call_)),
        agreement_(call_, rank, own, OthersOf(call_, rank), packed_) {}

  std::string title() const override { return Title(call_); }
  std::string brings() const override { return Brings(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    Status status = agreement_.Advance(engine, this);
    if (status.ok() && agreement_.reached() && !reduced_) ReduceAll();
    *over = status.ok() && reduced_;
    return status;
  }

  std::vector<int> WaitsFor() const override { return agreement_.missing(); }

 private:
  static std::vector<char> Packed(const CollectiveCall& call) {
    std::vector<char> packed(BytesOf(call));
    char* to = packed.data();
    for (const Piece& piece : call.pieces) {
      const size_t bytes = static_cast<size_t>(piece.count) * SizeOf(call.arithmetic.type);
      if (bytes > 0) std::memcpy(to, piece.in, bytes);
      to += bytes;
    }
    return packed;
  }

  void ReduceAll() {
    std::vector<const void*> inputs;
    for (size_t place = 0; place < call_.call.ranks.size(); ++place) {
      const size_t peer = place - (static_cast<int>(place) > place_ ? 1 : 0);
      inputs.push_back(static_cast<int>(place) == place_ ? packed_.data() : agreement_.data_of(peer));
    }
    const size_t element_bytes = SizeOf(call_.arithmetic.type);
    std::vector<char> result(BytesOf(call_));
    Reduce(call_.arithmetic, inputs, static_cast<int64_t>(result.size() / element_bytes), result.data());
    const char* from = result.data();
    for (const Piece& piece : call_.pieces) {
      const size_t bytes = static_cast<size_t>(piece.count) * element_bytes;
      if (bytes > 0) std::memcpy(piece.out, from, bytes);
      from += bytes;
    }
    reduced_ = true;
  }

  const CollectiveCall call_;
  const int place_;
  const std::vector<char> packed_;
  Agreement agreement_;
  bool reduced_ = false;
};

}  // namespace

bool IsSmall(const CollectiveCall& call) {
  // The more ranks, the more each sends beyond what owners of parts would.
  constexpr int64_t kMostBytesInAll = 3 * Agreement::kMostData;
  const int64_t bytes = BytesOf(call);
  const int64_t others = static_cast<int64_t>(call.call.ranks.size()) - 1;
  return call.collective == Collective::kAllReduce && bytes <= Agreement::kMostData &&
         bytes * others <= kMostBytesInAll;
}

std::unique_ptr<Operation> MakeSmallReduction(CollectiveCall call, int rank, const Admission& own) {
  return std::make_unique<SmallReduction>(std::move(call), rank, own);
}

}  // namespace whale
