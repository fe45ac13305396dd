// The registrations of the collectives: what they take, what they give, and which shapes are known before they run.

#include <string>

#include "kernels/ops/registration.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace whale {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Value i is input 1 + i, after `place`.
absl::Status SameShapes(InferenceContext* context) {
  for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, context->input(1 + i));
  return CheckPlace(context);
}

// The first outputs have the shapes of the values but for dimension 0, which `rows_of` gives.
template <typename RowsOf>
absl::Status OtherRows(InferenceContext* context, int tensors, RowsOf rows_of) {
  for (int i = 0; i < tensors; ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(context->WithRankAtLeast(context->input(1 + i), 1, &shape));
    if (context->RankKnown(shape)) {
      DimensionHandle rows;
      TF_RETURN_IF_ERROR(rows_of(i, shape, &rows));
      TF_RETURN_IF_ERROR(context->ReplaceDim(shape, 0, rows, &shape));
    }
    context->set_output(i, shape);
  }
  return CheckPlace(context);
}

// How many rows the other members bring is known when they come.
absl::Status GatheredShapes(InferenceContext* context) {
  const int tensors = context->num_outputs() - 1;
  context->set_output(tensors, context->Matrix(tensors, context->UnknownDim()));
  return OtherRows(context, tensors, [=](int, ShapeHandle, DimensionHandle* rows) {
    *rows = context->UnknownDim();
    return absl::OkStatus();
  });
}

absl::Status CheckDivides(InferenceContext* context, int index, ShapeHandle shape, int64_t members) {
  DimensionHandle rows = context->Dim(shape, 0);
  if (!context->ValueKnown(rows) || context->Value(rows) % members == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("tensor " + std::to_string(index) + " of " +
                                    std::to_string(context->num_outputs()) + " has shape " +
                                    context->DebugString(shape) + ", and " + std::to_string(members) +
                                    " members cannot share its dimension 0 evenly");
}

absl::Status ScatteredShapes(InferenceContext* context) {
  int64_t members = 0;
  TF_RETURN_IF_ERROR(context->GetAttr("members", &members));
  const bool equal = context->num_inputs() == 1 + context->num_outputs();  // no `rows`
  if (equal && members == 0) return absl::InvalidArgumentError("neither members nor their rows are given");
  return OtherRows(context, context->num_outputs(), [=](int i, ShapeHandle shape, DimensionHandle* rows) -> absl::Status {
    *rows = context->UnknownDim();
    if (!equal) return absl::OkStatus();
    TF_RETURN_IF_ERROR(CheckDivides(context, i, shape, members));
    return context->Divide(context->Dim(shape, 0), members, true, rows);
  });
}

absl::Status ExchangedShapes(InferenceContext* context) {
  int64_t members = 0;
  TF_RETURN_IF_ERROR(context->GetAttr("members", &members));
  return OtherRows(context, context->num_outputs(), [=](int i, ShapeHandle shape, DimensionHandle* rows) {
    *rows = context->Dim(shape, 0);
    return CheckDivides(context, i, shape, members);
  });
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
    .Doc("reduced[i] = scale * the reduction over all members of values[i], in their order: the same bits on every "
         "member. Values are overwritten where nobody else needs them." WHALE_PLACE_DOC);

WHALE_CALL("WhaleReduceScatter")
    .Input("values: N * T")
    .Input("rows: K * int64")
    .Output("parts: N * T")
    .Attr("N: int >= 1")
    .Attr("K: int >= 0")
    .Attr(WHALE_NUMBERS)
    .Attr(WHALE_REDUCTION)
    .Attr("scale: float = 1.0")
    .Attr("members: int >= 0 = 0")
    .SetShapeFn(ScatteredShapes)
    .Doc("Member k gets the k-th part along dimension 0 of what WhaleAllReduce gives. values[i]: [members * n, ...], "
         "parts[i]: [n, ...]. Where rows[0]: [N, members] is given, the same on every member, rows[0][i, k] rows of "
         "values[i] are for member k, and values[i] has as many as these are together; they say how many members there "
         "are, too." WHALE_PLACE_DOC);

WHALE_CALL("WhaleAllGather")
    .Input("values: N * T")
    .Output("gathered: N * T")
    .Output("rows: int64")
    .Attr("N: int >= 1")
    .Attr("T: " WHALE_PLAIN_OR_STRING)
    .SetShapeFn(GatheredShapes)
    .Doc("All members' values one after another along dimension 0. values[i]: [n_k, ...] on member k; gathered[i]: [sum "
         "of n_k, ...]; rows: [N, members], the n_k of each." WHALE_PLACE_DOC);

WHALE_CALL("WhaleAllToAll")
    .Input("values: N * T")
    .Output("exchanged: N * T")
    .Attr("N: int >= 1")
    .Attr("T: " WHALE_PLAIN)
    .Attr("members: int >= 1")
    .SetShapeFn(ExchangedShapes)
    .Doc("Part k along dimension 0 goes to member k; what comes from it is part k of the result. values[i], "
         "exchanged[i]: [members * n, ...]." WHALE_PLACE_DOC);

WHALE_CALL("WhaleBroadcast")
    .Input("values: N * T")
    .Output("received: N * T")
    .Attr("N: int >= 1")
    .Attr("T: " WHALE_PLAIN)
    .Attr("root: int >= 0")
    .SetShapeFn(SameShapes)
    .Doc("received[i] is values[i] of member `root`; the other members' values give type and shape." WHALE_PLACE_DOC);

}  // namespace whale
