// The arithmetic of reductions: many buffers into one.

#ifndef WHALE_KERNELS_COMMUNICATOR_REDUCE_H_
#define WHALE_KERNELS_COMMUNICATOR_REDUCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/communicator/status.h"
#include "kernels/communicator/types.h"

namespace whale {

// How values become one: scale * (a op b op c ...), divided by the number of values for a mean.
struct Arithmetic {
  DataType type = DataType::kFloat32;
  Reduction reduction = Reduction::kSum;
  double scale = 1.0;
};

// Ok, or kInvalidArgument with the reason: bytes are not numbers, a mean is for floats only, a
// scale for sums and means of floats.
Status CheckArithmetic(const std::string& op, const Arithmetic& arithmetic);

// out[i] = scale * (inputs[0][i] op inputs[1][i] op ...), in this order, for i < count.
//
// One pass over blocks that fit a cache: each input is read once from memory and `out` is written once. float16 and
// bfloat16 are reduced in float32 and rounded once, to nearest even. `out` may be one of the inputs, but must not
// overlap one otherwise. `arithmetic` has passed CheckArithmetic; there is at least one input.
void Reduce(const Arithmetic& arithmetic, const std::vector<const void*>& inputs, int64_t count, void* out);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_REDUCE_H_
