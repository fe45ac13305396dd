// The registrations of the collectives: what they take, what they give, and which shapes are known before they run.

#include <string>
#include <vector>

#include "kernels/ops/registration.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace whale {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status SameShapes(InferenceContext* context) {
  for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, context->input(i));
  return absl::OkStatus();
}

// How many ranks take part; 0 if the attribute leaves it to the world, which the graph does not know.
absl::Status NumberOfRanks(InferenceContext* context, int64_t* number) {
  std::vector<int> ranks;
  TF_RETURN_IF_ERROR(context->GetAttr("ranks", &ranks));
  *number = static_cast<int64_t>(ranks.size());
  return absl::OkStatus();
}

absl::Status CheckDivides(InferenceContext* context, int index, ShapeHandle shape, int64_t ranks) {
  DimensionHandle rows = context->Dim(shape, 0);
  if (ranks == 0 || !context->ValueKnown(rows) || context->Value(rows) % ranks == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("tensor " + std::to_string(index) + " of " +
                                    std::to_string(context->num_inputs()) + " has shape " +
                                    context->DebugString(shape) + ", and " + std::to_string(ranks) +
                                    " ranks cannot share its dimension 0 evenly");
}

// How many rows the other ranks bring is known when they come.
absl::Status GatheredShapes(InferenceContext* context) {
  const int tensors = context->num_outputs() - 1;
  for (int i = 0; i < tensors; ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(context->WithRankAtLeast(context->input(i), 1, &shape));
    if (context->RankKnown(shape)) TF_RETURN_IF_ERROR(context->ReplaceDim(shape, 0, context->UnknownDim(), &shape));
    context->set_output(i, shape);
  }
  context->set_output(tensors, context->Matrix(tensors, context->UnknownDim()));
  return absl::OkStatus();
}

absl::Status ScatteredShapes(InferenceContext* context) {
  int64_t ranks = 0;
  TF_RETURN_IF_ERROR(NumberOfRanks(context, &ranks));
  if (context->num_inputs() > context->num_outputs()) ranks = 0;  // with `rows`, parts may be unequal
  for (int i = 0; i < context->num_outputs(); ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(context->WithRankAtLeast(context->input(i), 1, &shape));
    if (context->RankKnown(shape)) {
      TF_RETURN_IF_ERROR(CheckDivides(context, i, shape, ranks));
      DimensionHandle rows = context->UnknownDim();
      if (ranks > 0) TF_RETURN_IF_ERROR(context->Divide(context->Dim(shape, 0), ranks, true, &rows));
      TF_RETURN_IF_ERROR(context->ReplaceDim(shape, 0, rows, &shape));
    }
    context->set_output(i, shape);
  }
  return absl::OkStatus();
}

absl::Status ExchangedShapes(InferenceContext* context) {
  int64_t ranks = 0;
  TF_RETURN_IF_ERROR(NumberOfRanks(context, &ranks));
  for (int i = 0; i < context->num_outputs(); ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(context->WithRankAtLeast(context->input(i), 1, &shape));
    if (context->RankKnown(shape)) TF_RETURN_IF_ERROR(CheckDivides(context, i, shape, ranks));
    context->set_output(i, shape);
  }
  return absl::OkStatus();
}

}  // namespace

#define WHALE_NUMBERS "T: {half, bfloat16, float, double, int32, int64, bool}"
#define WHALE_REDUCTION "reduction: {'sum', 'mean', 'max', 'min', 'product'} = 'sum'"

WHALE_CALL("WhaleAllReduce")
    .Input("values: N * T")
    .Output("reduced: N * T")
    .Attr("N: int >= 1")
    .Attr(WHALE_NUMBERS)
    .Attr(WHALE_REDUCTION)
    .Attr("scale: float = 1.0")
    .SetShapeFn(SameShapes)
    .Doc("reduced[i] = scale * the reduction over all ranks of values[i], in the order of the ranks: the same bits on "
         "every rank. Values are overwritten where nobody else needs them.");

WHALE_CALL("WhaleReduceScatter")
    .Input("values: N * T")
    .Input("rows: K * int64")
    .Output("parts: N * T")
    .Attr("N: int >= 1")
    .Attr("K: int >= 0")
    .Attr(WHALE_NUMBERS)
    .Attr(WHALE_REDUCTION)
    .Attr("scale: float = 1.0")
    .SetShapeFn(ScatteredShapes)
    .Doc("The rank at place k of `ranks` gets the k-th part along dimension 0 of what WhaleAllReduce gives. "
         "values[i]: [ranks * n, ...], parts[i]: [n, ...]. Where rows[0]: [N, ranks] is given, the same on every rank, "
         "rows[0][i, k] rows of values[i] are for place k, and values[i] has as many as these are together.");

WHALE_CALL("WhaleAllGather")
    .Input("values: N * T")
    .Output("gathered: N * T")
    .Output("rows: int64")
    .Attr("N: int >= 1")
    .Attr("T: " WHALE_PLAIN_OR_STRING)
    .SetShapeFn(GatheredShapes)
    .Doc("All ranks' values one after another along dimension 0. values[i]: [n_k, ...] on the rank at place k of `ranks`; "
         "gathered[i]: [sum of n_k, ...]; rows: [N, ranks], the n_k of each.");

WHALE_CALL("WhaleAllToAll")
    .Input("values: N * T")
    .Output("exchanged: N * T")
    .Attr("N: int >= 1")
    .Attr("T: " WHALE_PLAIN)
    .SetShapeFn(ExchangedShapes)
    .Doc("Part k along dimension 0 goes to the rank at place k of `ranks`; what comes from it is part k of the result. "
         "values[i], exchanged[i]: [ranks * n, ...].");

WHALE_CALL("WhaleBroadcast")
    .Input("values: N * T")
    .Output("received: N * T")
    .Attr("N: int >= 1")
    .Attr("T: " WHALE_PLAIN)
    .Attr("root: int >= 0")
    .SetShapeFn(SameShapes)
    .Doc("received[i] is values[i] of the rank at place `root` of `ranks`; the other ranks' values give type and shape.");

}  // namespace whale
