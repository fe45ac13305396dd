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
  using CallKernel::CallKernel;

 protected:
  enum class Memory { kMayBeTheInputs, kItsOwn };

  std::string TensorsOf(OpKernelContext* context) const override {
    std::string text = tensorflow::DataTypeString(context->input_dtype(0));
    for (int i = 0; i < context->num_outputs(); ++i) {
      text += (i == 0 ? " " : ", ") + context->input(i).shape().DebugString();
    }
    return text;
  }

  // Makes a piece of each input and output. `shape_of` gives the output's shape, or says why the input does not do.
  template <typename ShapeOf>
  absl::Status MakePieces(OpKernelContext* context, Memory memory, ShapeOf shape_of,
                          std::vector<Piece>* pieces) const {
    for (int i = 0; i < context->num_outputs(); ++i) {
      const Tensor& input = context->input(i);
      const void* in = MemoryOf(input);
      TensorShape shape = input.shape();
      TF_RETURN_IF_ERROR(shape_of(i, &shape));
      Tensor* output = nullptr;
      if (memory == Memory::kMayBeTheInputs) {
        TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({i}, i, shape, &output));
      } else {
        TF_RETURN_IF_ERROR(context->allocate_output(i, shape, &output));
      }
      pieces->push_back(Piece{in, MemoryOf(*output), CountOf(*output)});
    }
    return absl::OkStatus();
  }

  absl::Status CheckRows(OpKernelContext* context, int index, const Call& call, int rank) const {
    const Tensor& input = context->input(index);
    const int64_t ranks = static_cast<int64_t>(call.ranks.size());
    if (input.dims() > 0 && input.dim_size(0) % ranks == 0) return absl::OkStatus();
    return absl::InvalidArgumentError("'" + name() + "': " + Describe(input, index, context->num_outputs(), rank) +
                                      ", was expected to have a dimension 0 that is a multiple of " +
                                      std::to_string(ranks) + ", the number of ranks");
  }
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
    arithmetic_.type = ToWhale(context->input_type(0));
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
    TF_RETURN_IF_ERROR(GivenRows(context, rank, static_cast<int64_t>(call.ranks.size()), rows));
    const int place = PlaceOf(rank, call.ranks);
    auto part = [&](int i, TensorShape* shape) {
      if (rows->empty()) TF_RETURN_IF_ERROR(CheckRows(context, i, call, rank));
      shape->set_dim(0, rows->empty() ? shape->dim_size(0) / static_cast<int64_t>(call.ranks.size()) : (*rows)[place][i]);
      return absl::OkStatus();
    };
    TF_RETURN_IF_ERROR(MakePieces(context, Memory::kItsOwn, part, pieces));
    for (size_t i = 0; i < pieces->size() && !rows->empty(); ++i) {
      (*pieces)[i].count = CountOfRow(context->input(static_cast<int>(i)));
    }
    return absl::OkStatus();
  }

  absl::Status GivenRows(OpKernelContext* context, int rank, int64_t ranks, Rows* rows) const {
    tensorflow::OpInputList given;
    TF_RETURN_IF_ERROR(context->input_list("rows", &given));
    if (given.size() == 0) return absl::OkStatus();
    const int tensors = context->num_outputs();
    if (given[0].shape() != TensorShape({tensors, ranks})) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(rank) + ": rows " +
                                        given[0].shape().DebugString() + ", were expected to be [" +
                                        std::to_string(tensors) + "," + std::to_string(ranks) +
                                        "]: of each tensor and rank");
    }
    const auto table = given[0].matrix<int64_t>();
    bool all_equal = true;
    rows->assign(ranks, std::vector<int64_t>(tensors));
    for (int i = 0; i < tensors; ++i) {
      int64_t left = context->input(i).dims() > 0 ? context->input(i).dim_size(0) : -1;
      for (int64_t place = 0; place < ranks && left >= 0; ++place) {
        (*rows)[place][i] = table(i, place);
        all_equal = all_equal && table(i, place) == table(i, 0);
        left = table(i, place) < 0 ? -1 : left - table(i, place);
      }
      if (left != 0) {
        return absl::InvalidArgumentError("'" + name() + "': " + Describe(context->input(i), i, tensors, rank) +
                                          ", was expected to have a dimension 0 that is the sum of its rows, " +
                                          given[0].SubSlice(i).SummarizeValue(ranks));
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
    std::vector<Piece> pieces;
    auto same = [&](int i, TensorShape*) { return CheckRows(context, i, call, communicator->rank()); };
    // Not in place: a part that comes would overwrite one that has yet to go, and the communicator would have to copy.
    TF_RETURN_IF_ERROR(MakePieces(context, Memory::kItsOwn, same, &pieces));
    for (Piece& piece : pieces) piece.count /= static_cast<int64_t>(call.ranks.size());
    communicator->AllToAll(call, ToWhale(context->input_dtype(0)), std::move(pieces), std::move(done));
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
    const int ranks = static_cast<int>(call.ranks.size());
    if (root_ >= ranks) {
      return absl::InvalidArgumentError("'" + name() + "' on rank " + std::to_string(communicator->rank()) +
                                        ": root " + std::to_string(root_) + " was expected to be a place among " +
                                        std::to_string(ranks) + " ranks, from 0 on");
    }
    std::vector<Piece> pieces;
    auto same = [](int, TensorShape*) { return absl::OkStatus(); };
    TF_RETURN_IF_ERROR(MakePieces(context, Memory::kMayBeTheInputs, same, &pieces));
    communicator->Broadcast(call, ToWhale(context->input_dtype(0)), root_, std::move(pieces), std::move(done));
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
