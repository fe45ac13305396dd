// What the registrations of operations have in common: who calls, and the types that can be moved.

#ifndef WHALE_KERNELS_OPS_REGISTRATION_H_
#define WHALE_KERNELS_OPS_REGISTRATION_H_

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

// An operation whose kernel is a CallKernel. `place`: [communicator, member, number]: the handle of a communicator of this
// process, the caller's place among its members, and the number of the call, -1 for none. `label`: which call of the
// program it is. Nothing of this is of one member but the input, so that one function serves them all.
//
// Calls of one label and number meet, in the order in which each member makes them. Those without a number meet step by
// step and iteration by iteration of the loops around them.
#define WHALE_CALL(name) REGISTER_OP(name).Input("place: int64").Attr("label: string").SetIsStateful()

#define WHALE_PLACE_DOC \
  " place: int64 [3], the communicator's handle, the caller's place among its members, and the call's number or -1."

#define WHALE_PLAIN_TYPES                                                                            \
  "half, bfloat16, float, double, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool, " \
  "complex64, complex128"

// Types whose tensors are memory and nothing else, and these with strings, which are packed into memory.
#define WHALE_PLAIN "{" WHALE_PLAIN_TYPES "}"
#define WHALE_PLAIN_OR_STRING "{" WHALE_PLAIN_TYPES ", string}"

namespace whale {

// That the input `place` can be one.
inline absl::Status CheckPlace(tensorflow::shape_inference::InferenceContext* context) {
  tensorflow::shape_inference::ShapeHandle place;
  tensorflow::shape_inference::DimensionHandle size;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 1, &place));
  return context->WithValue(context->Dim(place, 0), 3, &size);
}

}  // namespace whale

#endif  // WHALE_KERNELS_OPS_REGISTRATION_H_
