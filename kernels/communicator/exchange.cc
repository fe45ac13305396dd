// All-gather and all-to-all between processes: a stream of segments from each rank to each other. What goes out begins at
// once; what comes in begins when all ranks have said how much it is.

#include <algorithm>
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
        agreement_(call_, rank, own, OthersOf(call_, rank), OwnRows(call_)) {}

  std::string title() const override { return Title(call_); }
  std::string brings() const override { return Brings(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    if (!begun_) Begin();
    Status status = agreement_.Advance(engine, this);
    for (Stream& stream : outgoing_) {
      if (status.ok()) status = stream.Advance(engine, this, own_.number);
    }
    const bool opens = status.ok() && agreement_.reached() && !opened_;
    if (opens) status = Open();
    for (Stream& stream : incoming_) {
      if (status.ok()) status = stream.Advance(engine, this, agreement_.number_of(stream.rank()));
    }
    if (opens && status.ok()) KeepOwnPart();
    auto is_over = [](const Stream& stream) { return stream.over(); };
    *over = status.ok() && opened_ && std::all_of(outgoing_.begin(), outgoing_.end(), is_over) &&
            std::all_of(incoming_.begin(), incoming_.end(), is_over);
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
        const int64_t bytes = (to_all_ ? call_.rows[0][i] : 1) * call_.pieces[i].count * element_bytes_;
        const int64_t offset = to_all_ ? 0 : static_cast<int64_t>(place) * bytes;
        spans.push_back({static_cast<const char*>(call_.pieces[i].in) + offset, nullptr, bytes});
      }
      if (static_cast<int>(place) == place_) {
        own_part_ = std::move(spans);
      } else {
        outgoing_.emplace_back(Direction::kTo, call_.call.ranks[place], kParts, Cut(spans));
      }
    }
  }

  // All ranks have said what they bring: makes room for it.
  Status Open() {
    opened_ = true;
    const Status status = to_all_ ? TakeRows(RowsOfAll(), &call_) : Status();
    if (!status.ok()) return status;
    std::vector<int64_t> offsets(call_.pieces.size());
    for (size_t place = 0; place < call_.call.ranks.size(); ++place) {
      std::vector<Span> spans;
      for (size_t i = 0; i < call_.pieces.size(); ++i) {
        const int64_t bytes = RowsOf(call_, place, i) * call_.pieces[i].count * element_bytes_;
        spans.push_back({nullptr, static_cast<char*>(call_.pieces[i].out) + offsets[i], bytes});
        offsets[i] += bytes;
      }
      if (static_cast<int>(place) == place_) {
        for (size_t i = 0; i < spans.size(); ++i) own_part_[i].out = spans[i].out;
      } else {
        incoming_.emplace_back(Direction::kFrom, call_.call.ranks[place], kParts, Cut(spans));
      }
    }
    return Status();
  }

  void KeepOwnPart() const {
    for (const Span& span : own_part_) {
      if (span.in != span.out && span.bytes > 0) std::memcpy(span.out, span.in, span.bytes);
    }
  }

  std::vector<Segment> Cut(const std::vector<Span>& spans) const {
    return CutIntoSegments(spans, element_bytes_, Blocks::kBytes);
  }

  // What the offer carries beside shapes without their rows.
  static std::vector<char> OwnRows(const CollectiveCall& call) {
    static_assert(kMostGathered * sizeof(int64_t) <= Agreement::kMostData);
    if (call.collective != Collective::kAllGather) return {};
    const char* bytes = reinterpret_cast<const char*>(call.rows[0].data());
    return std::vector<char>(bytes, bytes + call.rows[0].size() * sizeof(int64_t));
  }

  Rows RowsOfAll() const {
    Rows rows(call_.call.ranks.size(), call_.rows[0]);
    size_t peer = 0;
    for (size_t place = 0; place < rows.size(); ++place) {
      if (static_cast<int>(place) == place_ || rows[place].empty()) continue;
      std::memcpy(rows[place].data(), agreement_.data_of(peer++), rows[place].size() * sizeof(int64_t));
    }
    return rows;
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
  bool opened_ = false;
  std::vector<std::unique_ptr<char[]>> kept_;
  std::vector<Span> own_part_;
  std::deque<Stream> outgoing_;
  std::deque<Stream> incoming_;
};

}  // namespace

std::unique_ptr<Operation> MakeExchange(CollectiveCall call, int rank, const Admission& own) {
  return std::make_unique<Exchange>(std::move(call), rank, own);
}

}  // namespace whale
