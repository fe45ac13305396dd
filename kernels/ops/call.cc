#include "kernels/ops/call.h"

#include <mutex>
#include <utility>
#include <vector>

#include "kernels/communicator/world.h"
#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/threadpool.h"

namespace whale {
namespace {

constexpr int64_t kMicrosUntilTheCauseIsTold = 200'000;

using tensorflow::CancellationManager;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

// Passes on the cancellation of a step to the one call it is for, which may begin and end at any moment beside it.
class Cancellation {
 public:
  Cancellation(Communicator* communicator, Call call, CancellationManager* manager)
      : communicator_(communicator), call_(std::move(call)), manager_(manager) {}

  // False if the step is cancelled already. Comes before the call is made: afterwards the manager may be gone.
  static bool Register(const std::shared_ptr<Cancellation>& self) {
    if (self->manager_ == nullptr) return true;
    self->token_ = self->manager_->get_cancellation_token();
    return self->manager_->RegisterCallback(self->token_, [self] { self->Request(); });
  }

  // The call is made: a cancellation that came meanwhile, and found nothing to cancel, is made up for.
  void Started() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      started_ = true;
      if (!requested_ || finished_) return;
    }
    Cancel();
  }

  // The call is over. Does not wait for a Request that runs, since Request may be what ended the call.
  void Finish() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      finished_ = true;
    }
    if (manager_ != nullptr) manager_->TryDeregisterCallback(token_);
  }

 private:
  void Request() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      requested_ = true;
      if (!started_ || finished_) return;
    }
    Cancel();
  }

  void Cancel() {
    communicator_->Cancel(call_, Status(Code::kCancelled, "'" + call_.label.text + "' of rank " +
                                                              std::to_string(communicator_->rank()) +
                                                              " ended because its step was cancelled"));
  }

  Communicator* const communicator_;
  const Call call_;
  CancellationManager* const manager_;
  tensorflow::CancellationToken token_ = CancellationManager::kInvalidToken;
  std::mutex mutex_;
  bool started_ = false, requested_ = false, finished_ = false;
};

// The input `place`.
absl::Status ReadPlace(OpKernelContext* context, const std::string& op, Place* place) {
  const Tensor& given = context->input(0);
  if (given.dims() != 1 || given.dim_size(0) != 3) {
    return absl::InvalidArgumentError("'" + op + "' has a place of shape " + given.shape().DebugString() +
                                      ", expected was [3]: communicator, member, number");
  }
  const auto numbers = given.flat<int64_t>();
  *place = {numbers(0), numbers(1), numbers(2)};
  return absl::OkStatus();
}

// After an error between processes MPI may still read and write the tensors, at any time: world.h asks for this leak.
void KeepForEver(OpKernelContext* context) {
  auto* kept = new std::vector<Tensor>;
  for (int i = 0; i < context->num_inputs(); ++i) kept->push_back(context->input(i));
  for (int i = 0; i < context->num_outputs(); ++i) {
    if (Tensor* output = context->mutable_output(i)) kept->push_back(*output);
  }
  static std::mutex* mutex = new std::mutex;
  static auto* all = new std::vector<std::vector<Tensor>*>;  // reachable: not a leak to those who look for leaks
  std::lock_guard<std::mutex> lock(*mutex);
  all->push_back(kept);
}

Execute OnThreadsOf(OpKernelContext* context) {
  auto* workers = context->device()->tensorflow_cpu_worker_threads();
  if (workers == nullptr || workers->workers == nullptr) return nullptr;
  // TensorFlow's threads for CPU devices belong to the process: they are there as long as worlds are.
  tensorflow::thread::ThreadPool* pool = workers->workers;
  return [pool](std::function<void()> closure) { pool->Schedule(std::move(closure)); };
}

// Ends a call whose step was cancelled. TensorFlow tells of the error that comes first, and what failed in a function
// takes a moment to leave it.
void EndCancelled(OpKernelContext* context, absl::Status status, tensorflow::AsyncOpKernel::DoneCallback done) {
  auto end = [context, status = std::move(status), done = std::move(done)] {
    context->SetStatus(status);
    done();
  };
  tensorflow::Env::Default()->SchedClosureAfter(kMicrosUntilTheCauseIsTold, std::move(end));
}

}  // namespace

absl::Status ToTensorFlow(const Status& status) {
  switch (status.code()) {
    case Code::kOk:
      return absl::OkStatus();
    case Code::kInvalidArgument:
      return absl::InvalidArgumentError(status.message());
    case Code::kUnavailable:
      return absl::UnavailableError(status.message());
    case Code::kDeadlineExceeded:
      return absl::DeadlineExceededError(status.message());
    case Code::kCancelled:
      return absl::CancelledError(status.message());
    case Code::kInternal:
      return absl::InternalError(status.message());
  }
  return absl::InternalError(status.message());
}

DataType ToWhale(tensorflow::DataType type) {
  switch (type) {
    case tensorflow::DT_HALF:
      return DataType::kFloat16;
    case tensorflow::DT_BFLOAT16:
      return DataType::kBFloat16;
    case tensorflow::DT_FLOAT:
      return DataType::kFloat32;
    case tensorflow::DT_DOUBLE:
      return DataType::kFloat64;
    case tensorflow::DT_INT32:
      return DataType::kInt32;
    case tensorflow::DT_INT64:
      return DataType::kInt64;
    case tensorflow::DT_BOOL:
      return DataType::kBool;
    case tensorflow::DT_STRING:
      return DataType::kStrings;
    default:
      return DataType::kBytes;
  }
}

int64_t CountOf(const Tensor& tensor) {
  const bool bytes = ToWhale(tensor.dtype()) == DataType::kBytes;
  return tensor.NumElements() * (bytes ? tensorflow::DataTypeSize(tensor.dtype()) : 1);
}

int64_t CountOfRow(const Tensor& tensor) {
  tensorflow::TensorShape row = tensor.shape();
  row.RemoveDim(0);
  const bool bytes = ToWhale(tensor.dtype()) == DataType::kBytes;
  return row.num_elements() * (bytes ? tensorflow::DataTypeSize(tensor.dtype()) : 1);
}

void* MemoryOf(const Tensor& tensor) { return const_cast<char*>(tensor.tensor_data().data()); }

std::string Describe(const Tensor& tensor, int index, int count, int rank) {
  return "tensor " + std::to_string(index) + " of " + std::to_string(count) + ", " +
         tensorflow::DataTypeString(tensor.dtype()) + " " + tensor.shape().DebugString() + ", on rank " +
         std::to_string(rank);
}

CallKernel::CallKernel(tensorflow::OpKernelConstruction* context) : AsyncOpKernel(context) {
  std::string label;
  OP_REQUIRES_OK(context, context->GetAttr("label", &label));
  OP_REQUIRES(context, !label.empty(), absl::InvalidArgumentError("'" + name() + "' has an empty label"));
  label_ = Label(std::move(label));
}

void CallKernel::ComputeAsync(OpKernelContext* context, DoneCallback done) {
  Place place;
  OP_REQUIRES_OK_ASYNC(context, ReadPlace(context, name(), &place), done);
  Member member;
  const Status found = FindMember(name(), OnThreadsOf(context), place, &member);
  OP_REQUIRES_OK_ASYNC(context, ToTensorFlow(found), done);
  Communicator* const communicator = member.communicator;
  Call call;
  Identify(context, place.number, &call);
  call.ranks = std::move(member.ranks);
  call.tensors = TensorsOf(context);

  auto cancellation = std::make_shared<Cancellation>(communicator, call, context->cancellation_manager());
  if (!Cancellation::Register(cancellation)) {
    EndCancelled(context, absl::CancelledError("'" + name() + "' was not started: its step is cancelled"), done);
    return;
  }
  auto finish = [context, done, cancellation, between_processes = member.of_processes](const Status& status) {
    cancellation->Finish();
    if (!status.ok() && between_processes) KeepForEver(context);
    if (status.code() == Code::kCancelled) {
      EndCancelled(context, ToTensorFlow(status), done);
      return;
    }
    if (!status.ok()) context->SetStatus(ToTensorFlow(status));
    done();
  };
  const absl::Status started = Start(context, communicator, call, std::move(finish));
  if (started.ok()) {
    cancellation->Started();  // the context may be gone by now
    return;
  }
  cancellation->Finish();
  context->SetStatus(started);
  done();
}

void CallKernel::Identify(OpKernelContext* context, int64_t number, Call* call) const {
  call->label = label_;
  if (number == kNotNumbered) {
    call->step = context->step_id();
    // The frames of loops are named by the graph, so they have the same numbers in every process.
    const tensorflow::FrameAndIter frame = context->frame_iter();
    call->iteration = Hash(frame.frame_id, frame.iter_id);
    return;
  }
  // Members may call one function in steps of their own, as functions that are not inlined are.
  call->step = kAnyStep;
  call->iteration = static_cast<uint64_t>(number);
  call->label.text += ", number " + std::to_string(number);
  call->label.digest = Hash(call->label.digest, 1);  // apart from those without a number, which have steps
}

}  // namespace whale
