// Send and receive between processes. The first message tells type and shape and holds the data if they are few; more
// follow in a second one, straight from the sender's tensor into the receiver's.

#include <cstring>
#include <utility>

#include "kernels/communicator/operation.h"

namespace whale {
namespace {

constexpr int kMostDims = 254;               // as many as TensorFlow has
constexpr int64_t kInlineBytes = 8 << 10;
constexpr int64_t kEnvelopeBytes = 16 + 8 * kMostDims + kInlineBytes;

// What the first message begins with; then the dims, then the data if they are inline.
struct Envelope {
  int32_t type;
  int32_t dims;
  int64_t bytes;
};

class Send : public Operation {
 public:
  Send(const Call& call, int to, const Header& header, const void* data)
      : call_(call), to_(to), header_(header), data_(data) {}

  std::string title() const override { return "send '" + call_.op + "'"; }

  Status Advance(const Engine& engine, bool* over) override {
    if (first_ == nullptr) {
      Status status = Begin(engine);
      if (!status.ok()) return status;
    }
    if (!first_->done || (second_ != nullptr && !second_->done)) return Status();
    *over = true;
    Status status = Taken(*first_, to_, -1);
    return status.ok() && second_ != nullptr ? Taken(*second_, to_, -1) : status;
  }

  std::vector<int> WaitsFor() const override { return {to_}; }

 private:
  Status Begin(const Engine& engine) {
    if (header_.shape.size() > kMostDims) {
      return Status(Code::kInvalidArgument, title() + " has a tensor of " + std::to_string(header_.shape.size()) +
                                                " dims; at most " + std::to_string(kMostDims) + " are possible.");
    }
    Envelope envelope{static_cast<int32_t>(header_.type), static_cast<int32_t>(header_.shape.size()),
                      static_cast<int64_t>(SizeOf(header_.type))};
    for (const int64_t dim : header_.shape) envelope.bytes *= dim;
    const size_t dims_bytes = sizeof(int64_t) * header_.shape.size();
    const bool is_inline = envelope.bytes <= kInlineBytes;
    message_.resize(sizeof(envelope) + dims_bytes + (is_inline ? envelope.bytes : 0));
    std::memcpy(message_.data(), &envelope, sizeof(envelope));
    if (dims_bytes > 0) std::memcpy(message_.data() + sizeof(envelope), header_.shape.data(), dims_bytes);
    if (is_inline && envelope.bytes > 0) {
      std::memcpy(message_.data() + sizeof(envelope) + dims_bytes, data_, envelope.bytes);
    }
    first_ = engine.transport->Send(to_, TagOf(call_.id, kOffers), message_.data(),
                                    static_cast<int64_t>(message_.size()));
    if (!is_inline) second_ = engine.transport->Send(to_, TagOf(call_.id, kParts), data_, envelope.bytes);
    return Status();
  }

  const Call call_;
  const int to_;
  const Header header_;
  const void* const data_;
  std::vector<char> message_;
  std::shared_ptr<Transfer> first_;
  std::shared_ptr<Transfer> second_;
};

class Receive : public Operation {
 public:
  Receive(const Call& call, int from, std::function<void*(const Header&)> allocate)
      : call_(call), from_(from), allocate_(std::move(allocate)), message_(kEnvelopeBytes) {}

  std::string title() const override { return "receive '" + call_.op + "'"; }

  Status Advance(const Engine& engine, bool* over) override {
    if (first_ == nullptr) {
      first_ = engine.transport->Receive(from_, TagOf(call_.id, kOffers), message_.data(), kEnvelopeBytes);
    }
    if (!first_->done) return Status();
    if (second_ == nullptr) {
      Status status = Taken(*first_, from_, -1);
      if (status.ok()) status = Open(engine);
      if (!status.ok() || second_ == nullptr) {
        *over = status.ok();
        return status;
      }
    }
    if (!second_->done) return Status();
    *over = true;
    return Taken(*second_, from_, bytes_);
  }

  std::vector<int> WaitsFor() const override { return {from_}; }

 private:
  // Reads the first message: the data are in it, or the second transfer begins.
  Status Open(const Engine& engine) {
    Envelope envelope{};
    const int64_t come = first_->bytes;
    if (come >= static_cast<int64_t>(sizeof(envelope))) std::memcpy(&envelope, message_.data(), sizeof(envelope));
    const int64_t start = static_cast<int64_t>(sizeof(envelope)) + 8 * static_cast<int64_t>(envelope.dims);
    const bool is_inline = envelope.bytes <= kInlineBytes;
    if (come < static_cast<int64_t>(sizeof(envelope)) || envelope.dims < 0 || envelope.dims > kMostDims ||
        envelope.bytes < 0 || come != start + (is_inline ? envelope.bytes : 0)) {
      return Status(Code::kInvalidArgument, title() + ": rank " + std::to_string(from_) + " sent " +
                                                std::to_string(come) + " bytes that are no tensor; a call of another "
                                                "kind may have the same id " + std::to_string(call_.id) + ".");
    }
    Header header{static_cast<DataType>(envelope.type), std::vector<int64_t>(envelope.dims)};
    if (envelope.dims > 0) std::memcpy(header.shape.data(), message_.data() + sizeof(envelope), 8 * envelope.dims);
    bytes_ = envelope.bytes;
    void* data = allocate_(header);
    if (data == nullptr && bytes_ > 0) {
      return Status(Code::kInternal, title() + ": no memory for " + std::to_string(bytes_) + " bytes.");
    }
    if (!is_inline) {
      second_ = engine.transport->Receive(from_, TagOf(call_.id, kParts), data, bytes_);
    } else if (bytes_ > 0) {
      std::memcpy(data, message_.data() + start, bytes_);
    }
    return Status();
  }

  const Call call_;
  const int from_;
  const std::function<void*(const Header&)> allocate_;
  std::vector<char> message_;
  int64_t bytes_ = 0;
  std::shared_ptr<Transfer> first_;
  std::shared_ptr<Transfer> second_;
};

}  // namespace

std::unique_ptr<Operation> MakeSend(const Call& call, int to, const Header& header, const void* data) {
  return std::make_unique<Send>(call, to, header, data);
}

std::unique_ptr<Operation> MakeReceive(const Call& call, int from, std::function<void*(const Header&)> allocate) {
  return std::make_unique<Receive>(call, from, std::move(allocate));
}

}  // namespace whale
