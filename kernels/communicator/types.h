// Element types, and what they can be reduced by.

#ifndef WHALE_KERNELS_COMMUNICATOR_TYPES_H_
#define WHALE_KERNELS_COMMUNICATOR_TYPES_H_

#include <cstddef>
#include <cstdint>

namespace whale {

// kBytes is whatever is only moved: its element is one byte. So is that of kStrings, which are packed before they are
// moved.
enum class DataType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64, kInt32, kInt64, kBool, kBytes, kStrings };

// Of bools, kMin and kProduct are all(), kMax and kSum are any(); kMean is of floats only.
enum class Reduction : int32_t { kSum, kMean, kMax, kMin, kProduct };

size_t SizeOf(DataType type);
const char* NameOf(DataType type);
const char* NameOf(Reduction reduction);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_TYPES_H_
