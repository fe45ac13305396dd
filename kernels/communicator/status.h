// How a call ended.

#ifndef WHALE_KERNELS_COMMUNICATOR_STATUS_H_
#define WHALE_KERNELS_COMMUNICATOR_STATUS_H_

#include <string>
#include <utility>

namespace whale {

enum class Code {
  kOk,
  kInvalidArgument,   // the ranks' calls do not fit together
  kUnavailable,       // a rank has left or failed
  kDeadlineExceeded,  // a rank did not arrive in time
  kCancelled,         // the step that the call is of has ended
  kInternal,
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_STATUS_H_
