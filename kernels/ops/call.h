// What the kernels of all operations over a communicator have in common: finding it and which call it is, cancellation, and
// the one end.

#ifndef WHALE_KERNELS_OPS_CALL_H_
#define WHALE_KERNELS_OPS_CALL_H_

#include <memory>
#include <string>

#include "kernels/communicator/communicator.h"
#include "kernels/ops/worlds.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"

namespace whale {

// TensorFlow's status for the communicator's, with the same message.
absl::Status ToTensorFlow(const Status& status);

// kStrings for strings. kBytes for what else can only be moved: its count of elements is then a count of bytes.
DataType ToWhale(tensorflow::DataType type);
int64_t CountOf(const tensorflow::Tensor& tensor);

// Elements of one row along dimension 0, which the tensor must have; counted as CountOf does.
int64_t CountOfRow(const tensorflow::Tensor& tensor);

// Which input of a collective is its first value: `place` comes before.
constexpr int kFirstValue = 1;

// The memory of a tensor; null if it has none.
void* MemoryOf(const tensorflow::Tensor& tensor);

// "tensor 1 of 3, float [5,2], on rank 0"
std::string Describe(const tensorflow::Tensor& tensor, int index, int count, int rank);

// An operation whose result comes when other ranks have made the same call. It occupies no thread while it waits.
class CallKernel : public tensorflow::AsyncOpKernel {
 public:
  explicit CallKernel(tensorflow::OpKernelConstruction* context);
  void ComputeAsync(tensorflow::OpKernelContext* context, DoneCallback done) final;
  // It only hands over a call. As an expensive one it would be queued behind the computation that is ready too, and
  // the other ranks would wait for that.
  bool IsExpensive() override { return false; }

 protected:
  // Allocates the outputs and makes the call. An error means that the call was not made.
  virtual absl::Status Start(tensorflow::OpKernelContext* context, Communicator* communicator, const Call& call,
                             Done done) = 0;
  // "float [2,3], [5]": what ranks must bring alike.
  virtual std::string TensorsOf(tensorflow::OpKernelContext*) const { return ""; }

 private:
  // The call's label, number and step.
  void Identify(tensorflow::OpKernelContext* context, int64_t number, Call* call) const;

  Label label_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_OPS_CALL_H_
