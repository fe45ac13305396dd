// Sharded memory: a rank's shard of a variable or of a flat buffer, and the gathered shards back into the variable.
//
//     variable of 10 elements, size 4:   0 1 2 │ 3 4 5 │ 6 7 8 │ 9 · ·     each shard has ceil(10 / 4) = 3 elements
//                                       rank 0  rank 1  rank 2  rank 3     the end is filled with zeros

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/ops/call.h"
#include "kernels/ops/registration.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace whale {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::Var;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

int64_t ShardOf(int64_t elements, int64_t size) { return (elements + size - 1) / size; }

// The shape of a variable as far as its handle tells it.
ShapeHandle VariableShape(InferenceContext* context) {
  const auto* known = context->input_handle_shapes_and_types(0);
  return known == nullptr || known->empty() ? context->UnknownShape() : (*known)[0].shape;
}

absl::Status CheckRank(InferenceContext* context, int64_t* size) {
  int64_t rank = 0;
  TF_RETURN_IF_ERROR(context->GetAttr("rank", &rank));
  TF_RETURN_IF_ERROR(context->GetAttr("size", size));
  if (rank < *size) return absl::OkStatus();
  return absl::InvalidArgumentError("rank " + std::to_string(rank) + " was expected to be below the size, " +
                                    std::to_string(*size));
}

absl::Status ShardShape(InferenceContext* context, ShapeHandle whole) {
  int64_t size = 1;
  TF_RETURN_IF_ERROR(CheckRank(context, &size));
  DimensionHandle elements = context->NumElements(whole);
  const bool known = context->ValueKnown(elements);
  context->set_output(0, context->Vector(known ? context->MakeDim(ShardOf(context->Value(elements), size))
                                               : context->UnknownDim()));
  return absl::OkStatus();
}

REGISTER_OP("WhaleReadShard")
    .Input("resource: resource")
    .Output("shard: dtype")
    .Attr("dtype: " WHALE_PLAIN)
    .Attr("rank: int >= 0")
    .Attr("size: int >= 1")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) { return ShardShape(context, VariableShape(context)); })
    .Doc("Part `rank` of `size` equal parts of a variable's elements in their order, filled with zeros at the end. "
         "shard: [ceil(elements / size)].");

REGISTER_OP("WhaleShard")
    .Input("value: T")
    .Output("shard: T")
    .Attr("T: " WHALE_PLAIN)
    .Attr("rank: int >= 0")
    .Attr("size: int >= 1")
    .SetShapeFn([](InferenceContext* context) { return ShardShape(context, context->input(0)); })
    .Doc("What WhaleReadShard reads, of a tensor. shard: [ceil(elements / size)].");

REGISTER_OP("WhaleAssignShards")
    .Input("resource: resource")
    .Input("values: dtype")
    .Attr("dtype: " WHALE_PLAIN)
    .Attr("size: int >= 1")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) -> absl::Status {
      int64_t size = 1;
      TF_RETURN_IF_ERROR(context->GetAttr("size", &size));
      ShapeHandle values;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 1, &values));
      DimensionHandle elements = context->NumElements(VariableShape(context)), given = context->Dim(values, 0);
      if (!context->ValueKnown(elements) || !context->ValueKnown(given)) return absl::OkStatus();
      const int64_t expected = size * ShardOf(context->Value(elements), size);
      if (context->Value(given) == expected) return absl::OkStatus();
      return absl::InvalidArgumentError("values have " + std::to_string(context->Value(given)) +
                                        " elements, expected were " + std::to_string(expected) + ": " +
                                        std::to_string(size) + " shards of a variable of " +
                                        std::to_string(context->Value(elements)));
    })
    .Doc("Writes the gathered shards of a variable into it, without what filled the end. values: [size * ceil(elements / "
         "size)]. The variable keeps its shape.");

// Elements rank * n to (rank + 1) * n of `whole`, and zeros past its end.
absl::Status CopyShard(OpKernelContext* context, const Tensor& whole, int64_t rank, int64_t size) {
  const int64_t elements = whole.NumElements(), each = ShardOf(elements, size);
  Tensor* shard = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(0, TensorShape({each}), &shard));
  const int64_t begin = std::min(rank * each, elements), count = std::min(each, elements - begin);
  const int64_t bytes = tensorflow::DataTypeSize(whole.dtype());
  char* to = static_cast<char*>(MemoryOf(*shard));
  if (count > 0) std::memcpy(to, static_cast<const char*>(MemoryOf(whole)) + begin * bytes, count * bytes);
  if (each > count) std::memset(to + count * bytes, 0, (each - count) * bytes);
  return absl::OkStatus();
}

absl::Status FindVariable(OpKernelContext* context, const std::string& op, tensorflow::DataType dtype,
                          tensorflow::core::RefCountPtr<Var>* variable) {
  TF_RETURN_IF_ERROR(tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, 0), variable));
  tensorflow::tf_shared_lock lock(*(*variable)->mu());
  const Tensor* tensor = (*variable)->tensor();
  if (!tensor->IsInitialized()) {
    return absl::FailedPreconditionError("'" + op + "': the variable " + tensorflow::HandleFromInput(context, 0).name() +
                                         " has no value yet");
  }
  if (tensor->dtype() == dtype) return absl::OkStatus();
  return absl::InvalidArgumentError("'" + op + "': the variable " + tensorflow::HandleFromInput(context, 0).name() +
                                    " is " + tensorflow::DataTypeString(tensor->dtype()) + ", expected was " +
                                    tensorflow::DataTypeString(dtype));
}

class ShardKernel : public OpKernel {
 public:
  explicit ShardKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("rank", &rank_));
    OP_REQUIRES_OK(context, context->GetAttr("size", &size_));
  }
  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CopyShard(context, context->input(0), rank_, size_));
  }

 protected:
  int64_t rank_ = 0, size_ = 1;
};

class ReadShardKernel final : public ShardKernel {
 public:
  explicit ReadShardKernel(OpKernelConstruction* context) : ShardKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
  }
  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<Var> variable;
    OP_REQUIRES_OK(context, FindVariable(context, name(), dtype_, &variable));
    tensorflow::tf_shared_lock lock(*variable->mu());
    OP_REQUIRES_OK(context, CopyShard(context, *variable->tensor(), rank_, size_));
  }

 private:
  tensorflow::DataType dtype_ = tensorflow::DT_INVALID;
};

class AssignShardsKernel final : public OpKernel {
 public:
  explicit AssignShardsKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
    OP_REQUIRES_OK(context, context->GetAttr("size", &size_));
  }

  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<Var> variable;
    OP_REQUIRES_OK(context, FindVariable(context, name(), dtype_, &variable));
    const Tensor& values = context->input(1);
    tensorflow::mutex_lock lock(*variable->mu());
    Tensor* tensor = variable->tensor();
    const int64_t elements = tensor->NumElements(), expected = size_ * ShardOf(elements, size_);
    OP_REQUIRES(context, values.dims() == 1 && values.NumElements() == expected,
                absl::InvalidArgumentError("'" + name() + "': values have shape " + values.shape().DebugString() +
                                           ", expected was [" + std::to_string(expected) + "]: " +
                                           std::to_string(size_) + " shards of the variable " +
                                           tensorflow::HandleFromInput(context, 0).name() + " of shape " +
                                           tensor->shape().DebugString()));
    if (!tensor->RefCountIsOne()) {  // somebody reads the old value: it stays as it is
      Tensor fresh;
      OP_REQUIRES_OK(context, context->allocate_temp(dtype_, tensor->shape(), &fresh));
      *tensor = fresh;
    }
    const int64_t bytes = elements * tensorflow::DataTypeSize(dtype_);
    if (bytes > 0) std::memcpy(MemoryOf(*tensor), MemoryOf(values), bytes);
  }

 private:
  tensorflow::DataType dtype_ = tensorflow::DT_INVALID;
  int64_t size_ = 1;
};

REGISTER_KERNEL_BUILDER(Name("WhaleShard").Device(tensorflow::DEVICE_CPU), ShardKernel);
REGISTER_KERNEL_BUILDER(Name("WhaleReadShard").Device(tensorflow::DEVICE_CPU), ReadShardKernel);
REGISTER_KERNEL_BUILDER(Name("WhaleAssignShards").Device(tensorflow::DEVICE_CPU), AssignShardsKernel);

}  // namespace
}  // namespace whale
