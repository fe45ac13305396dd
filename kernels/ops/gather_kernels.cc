// The kernel of WhaleAllGather, which makes its outputs when the ranks have told how many rows they bring.

#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/call.h"
#include "kernels/ops/strings.h"
#include "tensorflow/core/platform/tstring.h"

namespace whale {
namespace {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

class AllGatherKernel final : public CallKernel {
 public:
  using CallKernel::CallKernel;

 protected:
  // "float [?,3], [?]"
  std::string TensorsOf(OpKernelContext* context) const override {
    std::string text = tensorflow::DataTypeString(context->input_dtype(kFirstValue));
    for (int i = 0; i < Tensors(context); ++i) {
      tensorflow::PartialTensorShape shape = Value(context, i).shape();
      if (shape.dims() > 0) shape.set_dim(0, -1);
      text += (i == 0 ? " " : ", ") + shape.DebugString();
    }
    return text;
  }

  absl::Status Start(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) override {
    for (int i = 0; i < Tensors(context); ++i) {
      if (Value(context, i).dims() > 0) continue;
      return absl::InvalidArgumentError(
          "'" + name() + "': " + Describe(Value(context, i), i, Tensors(context), communicator->rank()) +
          ", was expected to have a dimension 0, along which members are joined");
    }
    if (context->input_dtype(kFirstValue) == tensorflow::DT_STRING) {
      StartStrings(context, communicator, call, std::move(done));
      return absl::OkStatus();
    }
    std::vector<Piece> pieces;
    std::vector<int64_t> own_rows;
    for (int i = 0; i < Tensors(context); ++i) {
      const Tensor& input = Value(context, i);
      pieces.push_back({MemoryOf(input), nullptr, CountOfRow(input)});
      own_rows.push_back(input.dim_size(0));
    }
    auto make_outputs = [this, context](const Rows& rows, std::vector<void*>* outputs) {
      const absl::Status made = MakeOutputsOf(context, rows, outputs);
      return made.ok() ? Status() : Status(Code::kInternal, "'" + name() + "': " + std::string(made.message()));
    };
    communicator->AllGather(call, ToWhale(context->input_dtype(kFirstValue)), std::move(pieces), std::move(own_rows),
                            make_outputs, std::move(done));
    return absl::OkStatus();
  }

 private:
  // Strings, packed: those of this rank, and those that come, of which `bytes` says how many are whose.
  struct Packed {
    std::vector<std::vector<char>> own, gathered;
    Rows bytes;
  };

  static const Tensor& Value(OpKernelContext* context, int index) { return context->input(kFirstValue + index); }

  // The last output tells the rows.
  static int Tensors(OpKernelContext* context) { return context->num_outputs() - 1; }

  static absl::Status MakeOutputsOf(OpKernelContext* context, const Rows& rows, std::vector<void*>* outputs) {
    for (int i = 0; i < Tensors(context); ++i) {
      Tensor* output = nullptr;
      TF_RETURN_IF_ERROR(AllocateJoined(context, i, rows, &output));
      outputs->push_back(MemoryOf(*output));
    }
    return TellRows(context, rows);
  }

  static absl::Status AllocateJoined(OpKernelContext* context, int index, const Rows& rows, Tensor** output) {
    TensorShape shape = Value(context, index).shape();
    int64_t joined = 0;
    for (const std::vector<int64_t>& of_member : rows) joined += of_member[index];
    TF_RETURN_IF_ERROR(shape.SetDimWithStatus(0, joined));
    return context->allocate_output(index, shape, output);
  }

  static absl::Status TellRows(OpKernelContext* context, const Rows& rows) {
    Tensor* told = nullptr;
    const TensorShape shape({Tensors(context), static_cast<int64_t>(rows.size())});
    TF_RETURN_IF_ERROR(context->allocate_output(Tensors(context), shape, &told));
    auto table = told->matrix<int64_t>();
    for (size_t member = 0; member < rows.size(); ++member) {
      for (int i = 0; i < Tensors(context); ++i) table(i, member) = rows[member][i];
    }
    return absl::OkStatus();
  }

  // A tensor is one of bytes on the way.
  void StartStrings(OpKernelContext* context, Communicator* communicator, const Call& call, Done done) const {
    auto* packed = new Packed;  // freed below unless the transport may still use it
    std::vector<Piece> pieces;
    std::vector<int64_t> own_bytes;
    for (int i = 0; i < Tensors(context); ++i) packed->own.push_back(PackStrings(Value(context, i)));
    for (const std::vector<char>& own : packed->own) {
      pieces.push_back({own.data(), nullptr, 1});
      own_bytes.push_back(static_cast<int64_t>(own.size()));
    }
    auto make_outputs = [packed](const Rows& bytes, std::vector<void*>* outputs) {
      packed->bytes = bytes;
      for (size_t i = 0; i < packed->own.size(); ++i) {
        int64_t joined = 0;
        for (const std::vector<int64_t>& of_member : bytes) joined += of_member[i];
        packed->gathered.emplace_back(joined);
        outputs->push_back(packed->gathered.back().data());
      }
      return Status();
    };
    auto finish = [this, context, packed, done = std::move(done)](const Status& status) {
      if (status.ok()) {
        const absl::Status unpacked = Unpack(context, *packed);
        if (!unpacked.ok()) context->SetStatus(unpacked);
        delete packed;
      }
      done(status);
    };
    communicator->AllGather(call, DataType::kStrings, std::move(pieces), std::move(own_bytes), make_outputs,
                            std::move(finish));
  }

  static absl::Status Unpack(OpKernelContext* context, const Packed& packed) {
    std::vector<std::vector<std::string>> joined(packed.gathered.size());
    Rows rows(packed.bytes.size(), std::vector<int64_t>(joined.size()));
    for (size_t i = 0; i < joined.size(); ++i) {
      auto from = packed.gathered[i].begin();
      for (size_t member = 0; member < rows.size(); ++member) {
        const std::vector<char> of_member(from, from + packed.bytes[member][i]);
        from += packed.bytes[member][i];
        TensorShape shape;
        std::vector<std::string> strings;
        TF_RETURN_IF_ERROR(UnpackStrings(of_member, &shape, &strings));
        rows[member][i] = shape.dim_size(0);
        joined[i].insert(joined[i].end(), std::make_move_iterator(strings.begin()),
                         std::make_move_iterator(strings.end()));
      }
    }
    for (size_t i = 0; i < joined.size(); ++i) {
      Tensor* output = nullptr;
      TF_RETURN_IF_ERROR(AllocateJoined(context, static_cast<int>(i), rows, &output));
      auto values = output->flat<tensorflow::tstring>();
      for (size_t k = 0; k < joined[i].size(); ++k) values(k) = joined[i][k];
    }
    return TellRows(context, rows);
  }
};

REGISTER_KERNEL_BUILDER(Name("WhaleAllGather").Device(tensorflow::DEVICE_CPU), AllGatherKernel);

}  // namespace
}  // namespace whale
