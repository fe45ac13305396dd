// What the registrations of operations have in common: the attributes of a call, and the types that can be moved.

#ifndef WHALE_KERNELS_OPS_REGISTRATION_H_
#define WHALE_KERNELS_OPS_REGISTRATION_H_

#include "tensorflow/core/framework/op.h"

// An operation whose kernel is a CallKernel, with the attributes of every call. `world`: "processes", or the name of a
// world in this process's memory. `rank`, `ranks`: who calls and who takes part, in the order of the result; for
// processes they may be left out. `label`: which call of the program it is, the same on all ranks.
#define WHALE_CALL(name)                   \
  REGISTER_OP(name)                        \
      .Attr("label: string")               \
      .Attr("ranks: list(int) = []")       \
      .Attr("rank: int = -1")              \
      .Attr("world: string = 'processes'") \
      .SetIsStateful()

#define WHALE_PLAIN_TYPES                                                                            \
  "half, bfloat16, float, double, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool, " \
  "complex64, complex128"

// Types whose tensors are memory and nothing else, and these with strings, which are packed into memory.
#define WHALE_PLAIN "{" WHALE_PLAIN_TYPES "}"
#define WHALE_PLAIN_OR_STRING "{" WHALE_PLAIN_TYPES ", string}"

#endif  // WHALE_KERNELS_OPS_REGISTRATION_H_
