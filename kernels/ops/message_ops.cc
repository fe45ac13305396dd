// WhaleSend, WhaleReceive, WhaleBarrier: from one rank to another, and waiting for all.

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

WHALE_CALL("WhaleSend")
    .Input("value: T")
    .Attr("T: " WHALE_PLAIN_OR_STRING)
    .Attr("to: int >= 0")
    .Attr("detached: bool = false")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Sends a tensor to the rank numbered `to`. Ends when `value` is no longer needed, which may be only when it is "
         "received; if `detached`, once it is handed over, and it is kept until it was sent.");

WHALE_CALL("WhaleReceive")
    .Output("value: dtype")
    .Attr("dtype: " WHALE_PLAIN_OR_STRING)
    .Attr("shape: shape = { unknown_rank: true }")
    .Attr("source: int >= 0")  // not `from`, which Python keeps for itself
    .SetShapeFn(tensorflow::shape_inference::ExplicitShape)
    .Doc("The tensor that the rank numbered `source` sends under the same label. Its type must be `dtype`, and its shape must "
         "agree with `shape`, of which any part may be unknown.");

WHALE_CALL("WhaleBarrier")
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Ends when all ranks have come to it.");

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

class SendKernel final : public CallKernel {
 public:
  explicit SendKernel(OpKernelConstruction* context) : CallKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("to", &to_));
    OP_REQUIRES_OK(context, context->GetAttr("detached", &detached_));
  }

 protected:
  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& given, Done done) override {
    if (to_ >= communicator->size() || to_ == communicator->rank()) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(communicator->rank()) +
                                        " sends to rank " + std::to_string(to_) +
                                        ", was expected to name another rank below " +
                                        std::to_string(communicator->size()));
    }
    const Tensor& value = context->input(0);
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
      SendStrings(value, communicator, call, std::move(done));
    } else {
      communicator->Send(call, to_, HeaderOf(value), MemoryOf(value), std::move(done));
    }
    if (over) over(Status());
    return absl::OkStatus();
  }

 private:
  void SendStrings(const Tensor& value, Communicator* communicator, const Call& call, Done done) const {
    auto* packed = new std::vector<char>(PackStrings(value));  // freed below unless the transport may still read it
    const Header header{DataType::kStrings, {static_cast<int64_t>(packed->size())}};
    auto finish = [packed, done = std::move(done)](const Status& status) {
      if (status.ok()) delete packed;
      done(status);
    };
    communicator->Send(call, to_, header, packed->data(), std::move(finish));
  }

  int to_ = 0;
  bool detached_ = false;
};

class ReceiveKernel final : public CallKernel {
 public:
  explicit ReceiveKernel(OpKernelConstruction* context) : CallKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("source", &from_));
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
    if (from_ >= communicator->size() || from_ == rank) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " receives from rank " +
                                        std::to_string(from_) + ", was expected to name another rank below " +
                                        std::to_string(communicator->size()));
    }
    auto* aside = new Aside;  // freed below unless the transport may still write to it
    auto allocate = [this, context, aside, rank](const Header& header) -> void* {
      Tensor* output = nullptr;
      aside->strings = dtype_ == tensorflow::DT_STRING && header.type == DataType::kStrings;
      if (!aside->strings) {
        aside->status = Allocate(context, header, rank, &output);
        if (aside->status.ok()) return MemoryOf(*output);
      }
      int64_t bytes = static_cast<int64_t>(SizeOf(header.type));
      for (int64_t dim : header.shape) bytes *= dim;
      aside->memory.resize(bytes);
      return aside->memory.data();
    };
    auto finish = [this, context, aside, rank, done = std::move(done)](const Status& status) {
      if (status.ok()) {
        if (aside->strings) aside->status = TakeStrings(context, aside->memory, rank);
        if (!aside->status.ok()) context->SetStatus(aside->status);
        delete aside;
      }
      done(status);
    };
    communicator->Receive(call, from_, allocate, std::move(finish));
    return absl::OkStatus();
  }

 private:
  absl::Status Allocate(OpKernelContext* context, const Header& header, int rank, Tensor** output) const {
    std::vector<int64_t> dims = header.shape;
    bool fits = header.type == ToWhale(dtype_);
    if (fits && header.type == DataType::kBytes) {
      fits = !dims.empty() && dims.back() == tensorflow::DataTypeSize(dtype_);
      if (fits) dims.pop_back();
    }
    TensorShape shape;
    if (fits) TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape(dims, &shape));
    if (fits && shape_.IsCompatibleWith(shape)) return context->allocate_output(0, shape, output);
    return Refuse(Describe(header), rank);
  }

  absl::Status TakeStrings(OpKernelContext* context, const std::vector<char>& packed, int rank) const {
    TensorShape shape;
    std::vector<std::string> strings;
    const absl::Status status = UnpackStrings(packed, &shape, &strings);
    if (!status.ok()) return Refuse(std::string(status.message()), rank);
    if (!shape_.IsCompatibleWith(shape)) return Refuse("string " + shape.DebugString(), rank);
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, shape, &output));
    auto values = output->flat<tensorflow::tstring>();
    for (size_t i = 0; i < strings.size(); ++i) values(i) = strings[i];
    return absl::OkStatus();
  }

  absl::Status Refuse(const std::string& received, int rank) const {
    return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " received " + received +
                                      " from rank " + std::to_string(from_) + ", expected was " +
                                      tensorflow::DataTypeString(dtype_) + " " + shape_.DebugString());
  }

  int from_ = 0;
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
