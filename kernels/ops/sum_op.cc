// WhaleSum: the sums of gradients that come from the replicas of one process, in one pass over memory.

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/communicator/reduce.h"
#include "kernels/ops/call.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace whale {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status SumShapes(InferenceContext* context) {
  int64_t parts = 0;
  TF_RETURN_IF_ERROR(context->GetAttr("parts", &parts));
  if (context->num_inputs() != parts * context->num_outputs()) {
    return absl::InvalidArgumentError(std::to_string(context->num_inputs()) + " values were given, expected were " +
                                      std::to_string(parts) + " for each of " +
                                      std::to_string(context->num_outputs()) + " sums");
  }
  for (int k = 0; k < context->num_outputs(); ++k) {
    ShapeHandle shape = context->input(k * parts);
    for (int i = 1; i < parts; ++i) TF_RETURN_IF_ERROR(context->Merge(shape, context->input(k * parts + i), &shape));
    context->set_output(k, shape);
  }
  return absl::OkStatus();
}

REGISTER_OP("WhaleSum")
    .Input("values: M * T")
    .Output("sums: K * T")
    .Attr("M: int >= 1")
    .Attr("K: int >= 1")
    .Attr("parts: int >= 1")
    .Attr("T: {half, bfloat16, float, double, int32, int64}")
    .Attr("scale: float = 1.0")
    .SetShapeFn(SumShapes)
    .Doc("sums[k] = scale * (values[k * parts] + values[k * parts + 1] + ...), added in this order. `values` are K "
         "lists of `parts` tensors of one shape, M = K * parts in all. A scale other than 1 is for floats only.");

class SumKernel final : public tensorflow::OpKernel {
 public:
  explicit SumKernel(OpKernelConstruction* context) : OpKernel(context) {
    float scale = 1;
    OP_REQUIRES_OK(context, context->GetAttr("parts", &parts_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale));
    arithmetic_.type = ToWhale(context->input_type(0));
    arithmetic_.scale = scale;
    OP_REQUIRES_OK(context, ToTensorFlow(CheckArithmetic(name(), arithmetic_)));
  }

  void Compute(OpKernelContext* context) override {
    std::vector<Sum> sums(context->num_outputs());
    int64_t total = 0;
    for (int k = 0; k < context->num_outputs(); ++k) {
      sums[k].begin = total;
      OP_REQUIRES_OK(context, Prepare(context, k, &sums[k]));
      total += context->input(k * parts_).NumElements();
      sums[k].end = total;
    }
    auto* workers = context->device()->tensorflow_cpu_worker_threads();
    const int64_t cost = kNanosecondsPerElement * parts_;
    tensorflow::Shard(workers->num_threads, workers->workers, total, cost,
                      [&](int64_t begin, int64_t end) { AddRange(sums, begin, end); });
  }

 private:
  static constexpr int64_t kNanosecondsPerElement = 1;  // memory bound: about 4 bytes at 4 GB/s; Shard wants cycles

  // One output and its inputs: elements begin to end of all outputs laid one after another.
  struct Sum {
    int64_t begin = 0, end = 0;
    std::vector<const char*> inputs;
    char* output = nullptr;
  };

  absl::Status Prepare(OpKernelContext* context, int k, Sum* sum) const {
    const Tensor& first = context->input(k * parts_);
    std::vector<int> candidates;
    for (int i = k * parts_; i < (k + 1) * parts_; ++i) {
      const Tensor& value = context->input(i);
      if (value.shape() != first.shape()) {
        return absl::InvalidArgumentError("'" + name() + "': contribution " + std::to_string(i - k * parts_) +
                                          " to sum " + std::to_string(k) + " has shape " +
                                          value.shape().DebugString() + ", expected was that of contribution 0, " +
                                          first.shape().DebugString());
      }
      sum->inputs.push_back(static_cast<const char*>(MemoryOf(value)));
      candidates.push_back(i);
    }
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output(candidates, k, first.shape(), &output));
    sum->output = static_cast<char*>(MemoryOf(*output));
    return absl::OkStatus();
  }

  void AddRange(const std::vector<Sum>& sums, int64_t begin, int64_t end) const {
    const int64_t size = static_cast<int64_t>(SizeOf(arithmetic_.type));
    std::vector<const void*> inputs(parts_);
    auto sum = std::upper_bound(sums.begin(), sums.end(), begin,
                                [](int64_t element, const Sum& candidate) { return element < candidate.end; });
    for (; sum != sums.end() && sum->begin < end; ++sum) {
      const int64_t from = std::max(begin, sum->begin), to = std::min(end, sum->end);
      if (from >= to) continue;  // an empty tensor
      const int64_t offset = (from - sum->begin) * size;
      for (int i = 0; i < parts_; ++i) inputs[i] = sum->inputs[i] + offset;
      Reduce(arithmetic_, inputs, to - from, sum->output + offset);
    }
  }

  int parts_ = 1;
  Arithmetic arithmetic_;
};

REGISTER_KERNEL_BUILDER(Name("WhaleSum").Device(tensorflow::DEVICE_CPU), SumKernel);

}  // namespace
}  // namespace whale
