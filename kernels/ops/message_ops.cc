// WhaleSend, WhaleReceive, WhaleBarrier: from one member to another, and waiting for all.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/call.h"
#include "kernels/ops/registration.h"
#include "kernels/ops/strings.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/partial_tensor_shape.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/tstring.h"

namespace whale {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::PartialTensorShape;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;

// That the inputs `place`, and `to` or `source`, can be such.
absl::Status CheckMessage(InferenceContext* context) {
  tensorflow::shape_inference::ShapeHandle peer;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 0, &peer));
  return CheckPlace(context);
}

WHALE_CALL("WhaleSend")
    .Input("to: int32")
    .Input("value: T")
    .Attr("T: " WHALE_PLAIN_OR_STRING)
    .Attr("detached: bool = false")
    .SetShapeFn(CheckMessage)
    .Doc("Sends a tensor to the member `to`, a scalar. Ends when `value` is no longer needed, which may be only when it is "
         "received; if `detached`, once it is handed over, and it is kept until it was sent." WHALE_PLACE_DOC);

WHALE_CALL("WhaleReceive")
    .Input("source: int32")  // not `from`, which Python keeps for itself
    .Output("value: dtype")
    .Attr("dtype: " WHALE_PLAIN_OR_STRING)
    .Attr("shape: shape = { unknown_rank: true }")
    .SetShapeFn([](InferenceContext* context) {
      TF_RETURN_IF_ERROR(CheckMessage(context));
      return tensorflow::shape_inference::ExplicitShape(context);
    })
    .Doc("The tensor that the member `source`, a scalar, sends under the same label and number. Its type must be `dtype`, "
         "and its shape must agree with `shape`, of which any part may be unknown." WHALE_PLACE_DOC);

WHALE_CALL("WhaleBarrier")
    .SetShapeFn(CheckPlace)
    .Doc("Ends when all members have come to it." WHALE_PLACE_DOC);

// A message of bytes has the size of an element as its last dimension: the type is not told otherwise.
Header HeaderOf(const Tensor& value) {
  Header header;
  header.type = ToWhale(value.dtype());
  for (int i = 0; i < value.dims(); ++i) header.shape.push_back(value.dim_size(i));
  if (header.type == DataType::kBytes) header.shape.push_back(tensorflow::DataTypeSize(value.dtype()));
  return header;
}

std::string Describe(const Header& header) {
  std::string dims;
  for (int64_t dim : header.shape) dims += (dims.empty() ? "" : ",") + std::to_string(dim);
  return std::string(NameOf(header.type)) + " [" + dims + "]";
}

class MessageKernel : public CallKernel {
 public:
  using CallKernel::CallKernel;

 protected:
  // The rank of the member that the second input names. `does`: "sends to", for errors.
  absl::Status FindPeer(OpKernelContext* context, const Call& call, int rank, const char* does, int* peer) const {
    const Tensor& given = context->input(1);
    if (given.dims() != 0) {
      return absl::InvalidArgumentError("'" + name() + "' names a member by a tensor of shape " +
                                        given.shape().DebugString() + ", expected was a scalar");
    }
    const int member = given.scalar<int>()();
    const int members = static_cast<int>(call.ranks.size());
    if (member >= 0 && member < members && call.ranks[member] != rank) {
      *peer = call.ranks[member];
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " " + does + " member " +
                                      std::to_string(member) + ", was expected to name another one of " +
                                      std::to_string(members) + " members, from 0 on");
  }
};

class SendKernel final : public MessageKernel {
 public:
  explicit SendKernel(OpKernelConstruction* context) : MessageKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("detached", &detached_));
  }

 protected:
  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& given, Done done) override {
    int to = 0;
    TF_RETURN_IF_ERROR(FindPeer(context, given, communicator->rank(), "sends to", &to));
    const Tensor& value = context->input(2);
    const Done over = detached_ ? done : Done();
    Call call = given;
    call.detached = detached_;
    if (detached_) {
      // Whoever is to be told of an error has one of its own: the receiver.
      auto* kept = new Tensor(value);  // for ever after an error: the transport may still read it
      done = [kept](const Status& status) {
        if (status.ok()) delete kept;
      };
    }
    if (value.dtype() == tensorflow::DT_STRING) {
      SendStrings(value, communicator, call, to, std::move(done));
    } else {
      communicator->Send(call, to, HeaderOf(value), MemoryOf(value), std::move(done));
    }
    if (over) over(Status());
    return absl::OkStatus();
  }

 private:
  static void SendStrings(const Tensor& value, Communicator* communicator, const Call& call, int to, Done done) {
    auto* packed = new std::vector<char>(PackStrings(value));  // freed below unless the transport may still read it
    const Header header{DataType::kStrings, {static_cast<int64_t>(packed->size())}};
    auto finish = [packed, done = std::move(done)](const Status& status) {
      if (status.ok()) delete packed;
      done(status);
    };
    communicator->Send(call, to, header, packed->data(), std::move(finish));
  }

  bool detached_ = false;
};

class ReceiveKernel final : public MessageKernel {
 public:
  explicit ReceiveKernel(OpKernelConstruction* context) : MessageKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
    OP_REQUIRES_OK(context, context->GetAttr("shape", &shape_));
  }

 protected:
  // What does not come straight to the output: packed strings, and what does not fit, for which the transport gets a
  // place and the operation an error.
  struct Aside {
    absl::Status status;
    bool strings = false;
    std::vector<char> memory;
  };

  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    const int rank = communicator->rank();
    int from = 0;
    TF_RETURN_IF_ERROR(FindPeer(context, call, rank, "receives from", &from));
    auto* aside = new Aside;  // freed below unless the transport may still write to it
    auto allocate = [this, context, aside, rank, from](const Header& header) -> void* {
      Tensor* output = nullptr;
      aside->strings = dtype_ == tensorflow::DT_STRING && header.type == DataType::kStrings;
      if (!aside->strings) {
        aside->status = Allocate(context, header, rank, from, &output);
        if (aside->status.ok()) return MemoryOf(*output);
      }
      int64_t bytes = static_cast<int64_t>(SizeOf(header.type));
      for (int64_t dim : header.shape) bytes *= dim;
      aside->memory.resize(bytes);
      return aside->memory.data();
    };
    auto finish = [this, context, aside, rank, from, done = std::move(done)](const Status& status) {
      if (status.ok()) {
        if (aside->strings) aside->status = TakeStrings(context, aside->memory, rank, from);
        if (!aside->status.ok()) context->SetStatus(aside->status);
        delete aside;
      }
      done(status);
    };
    communicator->Receive(call, from, allocate, std::move(finish));
    return absl::OkStatus();
  }

 private:
  absl::Status Allocate(OpKernelContext* context, const Header& header, int rank, int from, Tensor** output) const {
    std::vector<int64_t> dims = header.shape;
    bool fits = header.type == ToWhale(dtype_);
    if (fits && header.type == DataType::kBytes) {
      fits = !dims.empty() && dims.back() == tensorflow::DataTypeSize(dtype_);
      if (fits) dims.pop_back();
    }
    TensorShape shape;
    if (fits) TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape(dims, &shape));
    if (fits && shape_.IsCompatibleWith(shape)) return context->allocate_output(0, shape, output);
    return Refuse(Describe(header), rank, from);
  }

  absl::Status TakeStrings(OpKernelContext* context, const std::vector<char>& packed, int rank, int from) const {
    TensorShape shape;
    std::vector<std::string> strings;
    const absl::Status status = UnpackStrings(packed, &shape, &strings);
    if (!status.ok()) return Refuse(std::string(status.message()), rank, from);
    if (!shape_.IsCompatibleWith(shape)) return Refuse("string " + shape.DebugString(), rank, from);
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, shape, &output));
    auto values = output->flat<tensorflow::tstring>();
    for (size_t i = 0; i < strings.size(); ++i) values(i) = strings[i];
    return absl::OkStatus();
  }

  absl::Status Refuse(const std::string& received, int rank, int from) const {
    return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " received " + received +
                                      " from rank " + std::to_string(from) + ", expected was " +
                                      tensorflow::DataTypeString(dtype_) + " " + shape_.DebugString());
  }

  tensorflow::DataType dtype_ = tensorflow::DT_INVALID;
  PartialTensorShape shape_;
};

class BarrierKernel final : public CallKernel {
 public:
  using CallKernel::CallKernel;

 protected:
  absl::Status Start(OpKernelContext*, Communicator* communicator, const Call& call, Done done) override {
    communicator->Barrier(call, std::move(done));
    return absl::OkStatus();
  }
};

REGISTER_KERNEL_BUILDER(Name("WhaleSend").Device(tensorflow::DEVICE_CPU), SendKernel);
REGISTER_KERNEL_BUILDER(Name("WhaleReceive").Device(tensorflow::DEVICE_CPU), ReceiveKernel);
REGISTER_KERNEL_BUILDER(Name("WhaleBarrier").Device(tensorflow::DEVICE_CPU), BarrierKernel);

}  // namespace
}  // namespace whale
