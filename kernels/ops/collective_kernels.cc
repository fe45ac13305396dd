// The kernels of the collectives whose results have the sizes of their inputs, or parts of them: tensors to pieces, and the
// communicator's call.

#include <string>
#include <utility>
#include <vector>

#include "kernels/communicator/offer.h"
#include "kernels/ops/call.h"

namespace whale {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// A collective over a list. Which of its calls it is, and how shapes change, is what the classes below say.
class CollectiveKernel : public CallKernel {
 public:
  explicit CollectiveKernel(OpKernelConstruction* context) : CallKernel(context) {
    if (context->HasAttr("members")) OP_REQUIRES_OK(context, context->GetAttr("members", &members_));
  }

 protected:
  enum class Memory { kMayBeTheInputs, kItsOwn };

  std::string TensorsOf(OpKernelContext* context) const override {
    std::string text = tensorflow::DataTypeString(context->input_dtype(kFirstValue));
    for (int i = 0; i < context->num_outputs(); ++i) {
      text += (i == 0 ? " " : ", ") + context->input(kFirstValue + i).shape().DebugString();
    }
    return text;
  }

  // Makes a piece of each input and output. `shape_of` gives the output's shape, or says why the input does not do.
  template <typename ShapeOf>
  absl::Status MakePieces(OpKernelContext* context, Memory memory, ShapeOf shape_of,
                          std::vector<Piece>* pieces) const {
    for (int i = 0; i < context->num_outputs(); ++i) {
      const Tensor& input = context->input(kFirstValue + i);
      const void* in = MemoryOf(input);
      TensorShape shape = input.shape();
      TF_RETURN_IF_ERROR(shape_of(i, &shape));
      Tensor* output = nullptr;
      if (memory == Memory::kMayBeTheInputs) {
        TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({kFirstValue + i}, i, shape, &output));
      } else {
        TF_RETURN_IF_ERROR(context->allocate_output(i, shape, &output));
      }
      pieces->push_back(Piece{in, MemoryOf(*output), CountOf(*output)});
    }
    return absl::OkStatus();
  }

  // That there are as many members as shapes were made for.
  absl::Status CheckMembers(const Call& call, int rank) const {
    const auto members = static_cast<int64_t>(call.ranks.size());
    if (members == members_) return absl::OkStatus();
    return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + " was made for " +
                                      std::to_string(members_) + " members, and its communicator has " +
                                      std::to_string(members));
  }

  absl::Status CheckRows(OpKernelContext* context, int index, int rank) const {
    const Tensor& input = context->input(kFirstValue + index);
    if (input.dims() > 0 && input.dim_size(0) % members_ == 0) return absl::OkStatus();
    return absl::InvalidArgumentError("'" + name() + "': " + Describe(input, index, context->num_outputs(), rank) +
                                      ", was expected to have a dimension 0 that is a multiple of " +
                                      std::to_string(members_) + ", the number of members");
  }

  int64_t members_ = 0;  // where the operation has it
};

// All-reduce, and reduce-scatter, which gives each rank its part of that.
template <bool kScatters>
class ReductionKernel final : public CollectiveKernel {
 public:
  explicit ReductionKernel(OpKernelConstruction* context) : CollectiveKernel(context) {
    std::string reduction;
    float scale = 1;
    OP_REQUIRES_OK(context, context->GetAttr("reduction", &reduction));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale));
    arithmetic_.type = ToWhale(context->input_type(kFirstValue));
    arithmetic_.scale = scale;
    for (Reduction known : {Reduction::kSum, Reduction::kMean, Reduction::kMax, Reduction::kMin, Reduction::kProduct}) {
      if (reduction == NameOf(known)) arithmetic_.reduction = known;
    }
    OP_REQUIRES(context, reduction == NameOf(arithmetic_.reduction),
                absl::InvalidArgumentError("'" + name() + "': there is no reduction '" + reduction + "'"));
    OP_REQUIRES_OK(context, ToTensorFlow(CheckArithmetic(name(), arithmetic_)));
  }

 protected:
  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    std::vector<Piece> pieces;
    if constexpr (kScatters) {
      Rows rows;
      TF_RETURN_IF_ERROR(MakeParts(context, communicator->rank(), call, &pieces, &rows));
      communicator->ReduceScatter(call, arithmetic_.type, arithmetic_.reduction, arithmetic_.scale, std::move(pieces),
                                  std::move(rows), std::move(done));
    } else {
      auto same = [](int, TensorShape*) { return absl::OkStatus(); };
      TF_RETURN_IF_ERROR(MakePieces(context, Memory::kMayBeTheInputs, same, &pieces));
      communicator->AllReduce(call, arithmetic_.type, arithmetic_.reduction, arithmetic_.scale, std::move(pieces),
                              std::move(done));
    }
    return absl::OkStatus();
  }

 private:
  // Equal parts, for which `rows` stays empty, or those that the operation is given.
  absl::Status MakeParts(OpKernelContext* context, int rank, const Call& call, std::vector<Piece>* pieces,
                         Rows* rows) const {
    tensorflow::OpInputList given;
    TF_RETURN_IF_ERROR(context->input_list("rows", &given));
    TF_RETURN_IF_ERROR(given.size() == 0 ? CheckMembers(call, rank) : ReadRows(context, rank, call, given[0], rows));
    const int member = PlaceOf(rank, call.ranks);
    auto part = [&](int i, TensorShape* shape) {
      if (given.size() == 0) TF_RETURN_IF_ERROR(CheckRows(context, i, rank));
      const auto members = static_cast<int64_t>(call.ranks.size());
      shape->set_dim(0, rows->empty() ? shape->dim_size(0) / members : (*rows)[member][i]);
      return absl::OkStatus();
    };
    TF_RETURN_IF_ERROR(MakePieces(context, Memory::kItsOwn, part, pieces));
    for (size_t i = 0; i < pieces->size() && !rows->empty(); ++i) {
      (*pieces)[i].count = CountOfRow(context->input(kFirstValue + static_cast<int>(i)));
    }
    return absl::OkStatus();
  }

  // The rows of each tensor that are for each member; none where all are for equal parts.
  absl::Status ReadRows(OpKernelContext* context, int rank, const Call& call, const Tensor& given, Rows* rows) const {
    const int tensors = context->num_outputs();
    const auto members = static_cast<int64_t>(call.ranks.size());
    if (given.shape() != TensorShape({tensors, members})) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + ": rows " +
                                        given.shape().DebugString() + ", were expected to be [" +
                                        std::to_string(tensors) + "," + std::to_string(members) +
                                        "]: of each tensor and member");
    }
    const auto table = given.matrix<int64_t>();
    bool all_equal = true;
    rows->assign(members, std::vector<int64_t>(tensors));
    for (int i = 0; i < tensors; ++i) {
      const Tensor& input = context->input(kFirstValue + i);
      int64_t left = input.dims() > 0 ? input.dim_size(0) : -1;
      for (int64_t member = 0; member < members && left >= 0; ++member) {
        (*rows)[member][i] = table(i, member);
        all_equal = all_equal && table(i, member) == table(i, 0);
        left = table(i, member) < 0 ? -1 : left - table(i, member);
      }
      if (left != 0) {
        return absl::InvalidArgumentError("'" + name() + "': " + Describe(input, i, tensors, rank) +
                                          ", was expected to have a dimension 0 that is the sum of its rows, " +
                                          given.SubSlice(i).SummarizeValue(members));
      }
    }
    if (all_equal) rows->clear();
    return absl::OkStatus();
  }

  Arithmetic arithmetic_;
};

class AllToAllKernel final : public CollectiveKernel {
 public:
  using CollectiveKernel::CollectiveKernel;

 protected:
  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    TF_RETURN_IF_ERROR(CheckMembers(call, communicator->rank()));
    std::vector<Piece> pieces;
    auto same = [&](int i, TensorShape*) { return CheckRows(context, i, communicator->rank()); };
    // Not in place: a part that comes would overwrite one that has yet to go, and the communicator would have to copy.
    TF_RETURN_IF_ERROR(MakePieces(context, Memory::kItsOwn, same, &pieces));
    for (Piece& piece : pieces) piece.count /= members_;
    communicator->AllToAll(call, ToWhale(context->input_dtype(kFirstValue)), std::move(pieces), std::move(done));
    return absl::OkStatus();
  }
};

class BroadcastKernel final : public CollectiveKernel {
 public:
  explicit BroadcastKernel(OpKernelConstruction* context) : CollectiveKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("root", &root_));
  }

 protected:
  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    const int members = static_cast<int>(call.ranks.size());
    if (root_ >= members) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(communicator->rank()) +
                                        ": root " + std::to_string(root_) + " was expected to be one of " +
                                        std::to_string(members) + " members, from 0 on");
    }
    std::vector<Piece> pieces;
    auto same = [](int, TensorShape*) { return absl::OkStatus(); };
    TF_RETURN_IF_ERROR(MakePieces(context, Memory::kMayBeTheInputs, same, &pieces));
    communicator->Broadcast(call, ToWhale(context->input_dtype(kFirstValue)), root_, std::move(pieces), std::move(done));
    return absl::OkStatus();
  }

 private:
  int root_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("WhaleAllReduce").Device(tensorflow::DEVICE_CPU), ReductionKernel<false>);
REGISTER_KERNEL_BUILDER(Name("WhaleReduceScatter").Device(tensorflow::DEVICE_CPU), ReductionKernel<true>);
REGISTER_KERNEL_BUILDER(Name("WhaleAllToAll").Device(tensorflow::DEVICE_CPU), AllToAllKernel);
REGISTER_KERNEL_BUILDER(Name("WhaleBroadcast").Device(tensorflow::DEVICE_CPU), BroadcastKernel);

}  // namespace
}  // namespace whale
