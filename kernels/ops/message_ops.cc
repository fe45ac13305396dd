// WhaleSend, WhaleReceive, WhaleBarrier: from one rank to another, and waiting for all.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/call.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/partial_tensor_shape.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace whale {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::PartialTensorShape;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;

#define WHALE_PLAIN                                                                                    \
  "{half, bfloat16, float, double, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool, " \
  "complex64, complex128}"

REGISTER_OP("WhaleSend")
    .Input("value: T")
    .Attr("T: " WHALE_PLAIN)
    .Attr("to: int >= 0")
    .Attr("id: int >= 0")
    .Attr("ranks: list(int) = []")
    .Attr("rank: int = -1")
    .Attr("world: string = 'processes'")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Sends a tensor to the rank numbered `to`. Ends when `value` is no longer needed, which may be only when it is "
         "received.");

REGISTER_OP("WhaleReceive")
    .Output("value: dtype")
    .Attr("dtype: " WHALE_PLAIN)
    .Attr("shape: shape = { unknown_rank: true }")
    .Attr("source: int >= 0")  // not `from`, which Python keeps for itself
    .Attr("id: int >= 0")
    .Attr("ranks: list(int) = []")
    .Attr("rank: int = -1")
    .Attr("world: string = 'processes'")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ExplicitShape)
    .Doc("The tensor that the rank numbered `source` sends under the same id. Its type must be `dtype`, and its shape must "
         "agree with `shape`, of which any part may be unknown.");

REGISTER_OP("WhaleBarrier")
    .Attr("id: int >= 0")
    .Attr("ranks: list(int) = []")
    .Attr("rank: int = -1")
    .Attr("world: string = 'processes'")
    .SetIsStateful()
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
  }

 protected:
  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    if (to_ >= communicator->size() || to_ == communicator->rank()) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(communicator->rank()) +
                                        " sends to rank " + std::to_string(to_) +
                                        ", was expected to name another rank below " +
                                        std::to_string(communicator->size()));
    }
    const Tensor& value = context->input(0);
    communicator->Send(call, to_, HeaderOf(value), MemoryOf(value), std::move(done));
    return absl::OkStatus();
  }

 private:
  int to_ = 0;
};

class ReceiveKernel final : public CallKernel {
 public:
  explicit ReceiveKernel(OpKernelConstruction* context) : CallKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("source", &from_));
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
    OP_REQUIRES_OK(context, context->GetAttr("shape", &shape_));
  }

 protected:
  // What comes although it does not fit: the transport gets a place for it, and the operation an error.
  struct Misfit {
    absl::Status status;
    std::vector<char> memory;
  };

  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    const int rank = communicator->rank();
    if (from_ >= communicator->size() || from_ == rank) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " receives from rank " +
                                        std::to_string(from_) + ", was expected to name another rank below " +
                                        std::to_string(communicator->size()));
    }
    auto* misfit = new Misfit;  // freed below unless the transport may still write to it
    auto allocate = [this, context, misfit, rank](const Header& header) -> void* {
      Tensor* output = nullptr;
      misfit->status = Allocate(context, header, rank, &output);
      if (misfit->status.ok()) return MemoryOf(*output);
      int64_t bytes = static_cast<int64_t>(SizeOf(header.type));
      for (int64_t dim : header.shape) bytes *= dim;
      misfit->memory.resize(bytes);
      return misfit->memory.data();
    };
    auto finish = [context, misfit, done = std::move(done)](const Status& status) {
      if (status.ok()) {
        if (!misfit->status.ok()) context->SetStatus(misfit->status);
        delete misfit;
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
    return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " received " +
                                      Describe(header) + " from rank " + std::to_string(from_) + ", expected was " +
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
