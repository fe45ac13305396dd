// Send and receive between processes. A letter tells type and shape and holds the data if they are few; more follow in a
// message of their own, straight from the sender's tensor into the receiver's.

#include <cstring>
#include <optional>
#include <utility>

#include "kernels/communicator/operation.h"

namespace whale {
namespace {

constexpr int kMostDims = 254;               // as many as TensorFlow has
constexpr int64_t kInlineBytes = 8 << 10;

// What the letter begins with; then the dims, then the data if they are inline.
struct Envelope {
  int32_t type;
  int32_t dims;
  int64_t bytes;
};

class Send : public Operation {
 public:
  Send(const Call& call, int to, const Header& header, const void* data, const Admission& own)
      : call_(call), to_(to), header_(header), data_(data), own_(own) {}

  std::string title() const override { return "send '" + call_.label.text + "'"; }
  std::string brings() const override {
    std::string dims;
    for (const int64_t dim : header_.shape) dims += (dims.empty() ? "" : ",") + std::to_string(dim);
    return std::string(NameOf(header_.type)) + " [" + dims + "]";
  }

  Status Advance(const Engine& engine, bool* over) override {
    if (!begun_) {
      begun_ = true;
      Status status = Begin(engine);
      if (!status.ok()) return status;
    }
    *over = data_transfer_ == nullptr || data_transfer_->done;
    return *over && data_transfer_ != nullptr ? Taken(*data_transfer_, to_, -1) : Status();
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
    std::vector<char> message(sizeof(envelope) + dims_bytes + (is_inline ? envelope.bytes : 0));
    std::memcpy(message.data(), &envelope, sizeof(envelope));
    if (dims_bytes > 0) std::memcpy(message.data() + sizeof(envelope), header_.shape.data(), dims_bytes);
    if (is_inline && envelope.bytes > 0) {
      std::memcpy(message.data() + sizeof(envelope) + dims_bytes, data_, envelope.bytes);
    }
    engine.mailbox->Send(to_, own_.letter(), std::make_shared<const std::vector<char>>(std::move(message)));
    if (!is_inline) data_transfer_ = engine.transport->Send(to_, TagOf(own_.number, kParts), data_, envelope.bytes);
    return Status();
  }

  const Call call_;
  const int to_;
  const Header header_;
  const void* const data_;
  const Admission own_;
  bool begun_ = false;
  std::shared_ptr<Transfer> data_transfer_;
};

class Receive : public Operation {
 public:
  Receive(const Call& call, int from, std::function<void*(const Header&)> allocate, const Admission& own)
      : call_(call), from_(from), allocate_(std::move(allocate)), own_(own) {}

  std::string title() const override { return "receive '" + call_.label.text + "'"; }
  std::string brings() const override { return ""; }

  Status Advance(const Engine& engine, bool* over) override {
    if (!opened_) {
      const std::optional<Mail> mail = engine.mailbox->Take(from_, own_.ticket, 0);
      if (!mail) return Status();
      Moved();
      opened_ = true;
      Status status = Open(engine, *mail);
      if (!status.ok()) return status;
    }
    *over = data_transfer_ == nullptr || data_transfer_->done;
    return *over && data_transfer_ != nullptr ? Taken(*data_transfer_, from_, bytes_) : Status();
  }

  std::vector<int> WaitsFor() const override { return {from_}; }

 private:
  // Reads the letter: the data are in it, or their transfer begins.
  Status Open(const Engine& engine, const Mail& mail) {
    const char* message = mail.payload.data();
    Envelope envelope{};
    const int64_t come = static_cast<int64_t>(mail.payload.size());
    if (come >= static_cast<int64_t>(sizeof(envelope))) std::memcpy(&envelope, message, sizeof(envelope));
    const int64_t start = static_cast<int64_t>(sizeof(envelope)) + 8 * static_cast<int64_t>(envelope.dims);
    const bool is_inline = envelope.bytes <= kInlineBytes;
    if (come < static_cast<int64_t>(sizeof(envelope)) || envelope.dims < 0 || envelope.dims > kMostDims ||
        envelope.bytes < 0 || come != start + (is_inline ? envelope.bytes : 0)) {
      return Status(Code::kInvalidArgument, title() + ": rank " + std::to_string(from_) + " sent " +
                                                std::to_string(come) + " bytes that are no tensor.");
    }
    Header header{static_cast<DataType>(envelope.type), std::vector<int64_t>(envelope.dims)};
    if (envelope.dims > 0) std::memcpy(header.shape.data(), message + sizeof(envelope), 8 * envelope.dims);
    bytes_ = envelope.bytes;
    void* data = allocate_(header);
    if (data == nullptr && bytes_ > 0) {
      return Status(Code::kInternal, title() + ": no memory for " + std::to_string(bytes_) + " bytes.");
    }
    if (!is_inline) {
      data_transfer_ = engine.transport->Receive(from_, TagOf(mail.letter.number, kParts), data, bytes_);
    } else if (bytes_ > 0) {
      std::memcpy(data, message + start, bytes_);
    }
    return Status();
  }

  const Call call_;
  const int from_;
  const std::function<void*(const Header&)> allocate_;
  const Admission own_;
  bool opened_ = false;
  int64_t bytes_ = 0;
  std::shared_ptr<Transfer> data_transfer_;
};

}  // namespace

std::unique_ptr<Operation> MakeSend(const Call& call, int to, const Header& header, const void* data,
                                    const Admission& own) {
  return std::make_unique<Send>(call, to, header, data, own);
}

std::unique_ptr<Operation> MakeReceive(const Call& call, int from, std::function<void*(const Header&)> allocate,
                                       const Admission& own) {
  return std::make_unique<Receive>(call, from, std::move(allocate), own);
}

}  // namespace whale
