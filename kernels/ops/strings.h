// Tensors of strings as bytes, so that they can be a message.

#ifndef WHALE_KERNELS_OPS_STRINGS_H_
#define WHALE_KERNELS_OPS_STRINGS_H_

#include <string>
#include <vector>

#include "tensorflow/core/framework/tensor.h"

namespace whale {

// The number of dims, the dims and the strings' lengths, each as eight bytes; then the strings, one after another.
std::vector<char> PackStrings(const tensorflow::Tensor& value);

// Reads what PackStrings made: the shape and the strings. An error where the bytes are something else.
absl::Status UnpackStrings(const std::vector<char>& packed, tensorflow::TensorShape* shape,
                           std::vector<std::string>* strings);

}  // namespace whale

#endif  // WHALE_KERNELS_OPS_STRINGS_H_
