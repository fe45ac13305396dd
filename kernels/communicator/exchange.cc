// All-gather and all-to-all between processes: a row of segments from each rank to each other.

#include <cstring>
#include <deque>
#include <utility>

#include "kernels/communicator/agreement.h"
#include "kernels/communicator/operation.h"
#include "kernels/communicator/streams.h"

namespace whale {
namespace {

class Exchange : public Operation {
 public:
  Exchange(CollectiveCall call, int rank, const Admission& own)
      : call_(std::move(call)),
        own_(own),
        place_(PlaceOf(rank, call_.call.ranks)),
        to_all_(call_.collective == Collective::kAllGather),
        element_bytes_(static_cast<int64_t>(SizeOf(call_.arithmetic.type))),
        agreement_(call_, rank, own, OthersOf(call_, rank)) {}

  std::string title() const override { return Title(call_); }
  std::string brings() const override { return Brings(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    if (!begun_) Begin();
    Status status = agreement_.Advance(engine, this);
    *over = agreement_.reached();
    for (Stream& stream : outgoing_) {
      if (status.ok()) status = stream.Advance(engine, this, own_.number);
      *over = *over && stream.over();
    }
    for (Stream& stream : incoming_) {
      if (status.ok() && agreement_.reached()) {
        status = stream.Advance(engine, this, agreement_.number_of(stream.rank()));
      }
      *over = *over && stream.over();
    }
    *over = *over && status.ok();
    return status;
  }

  std::vector<int> WaitsFor() const override {
    if (!agreement_.reached()) return agreement_.missing();
    std::vector<int> ranks;
    for (size_t i = 0; i < incoming_.size(); ++i) {
      if (!incoming_[i].over() || !outgoing_[i].over()) ranks.push_back(incoming_[i].rank());
    }
    return ranks;
  }

 private:
  void Begin() {
    begun_ = true;
    if (!to_all_) KeepWhatIsReplaced();
    for (size_t place = 0; place < call_.call.ranks.size(); ++place) {
      std::vector<Span> spans;
      for (size_t i = 0; i < call_.pieces.size(); ++i) {
        const Piece& piece = call_.pieces[i];
        const int64_t bytes = piece.count * element_bytes_;
        const int64_t offset = static_cast<int64_t>(place) * bytes;
        spans.push_back({static_cast<const char*>(piece.in) + (to_all_ ? 0 : offset),
                         static_cast<char*>(piece.out) + offset, bytes});
      }
      if (static_cast<int>(place) == place_) {
        for (const Span& span : spans) {
          if (span.in != span.out && span.bytes > 0) std::memcpy(span.out, span.in, span.bytes);
        }
        continue;
      }
      const int peer = call_.call.ranks[place];
      const std::vector<Segment> segments = CutIntoSegments(spans, element_bytes_, Blocks::kBytes);
      outgoing_.emplace_back(Direction::kTo, peer, kParts, segments);
      incoming_.emplace_back(Direction::kFrom, peer, kParts, segments);
    }
  }

  // In place, the part that comes from a rank overwrites the part that goes to it, which may not be gone yet.
  void KeepWhatIsReplaced() {
    for (Piece& piece : call_.pieces) {
      const int64_t bytes = piece.count * element_bytes_ * static_cast<int64_t>(call_.call.ranks.size());
      if (piece.in != piece.out || bytes == 0 || call_.call.ranks.size() == 1) continue;
      kept_.emplace_back(new char[bytes]);
      std::memcpy(kept_.back().get(), piece.in, bytes);
      piece.in = kept_.back().get();
    }
  }

  CollectiveCall call_;
  const Admission own_;
  const int place_;
  const bool to_all_;
  const int64_t element_bytes_;
  Agreement agreement_;
  bool begun_ = false;
  std::vector<std::unique_ptr<char[]>> kept_;
  std::deque<Stream> outgoing_;
  std::deque<Stream> incoming_;
};

}  // namespace

std::unique_ptr<Operation> MakeExchange(CollectiveCall call, int rank, const Admission& own) {
  return std::make_unique<Exchange>(std::move(call), rank, own);
}

}  // namespace whale
