#include "kernels/communicator/reduce.h"

#include <cstring>
#include <type_traits>

#include "kernels/communicator/half.h"

namespace whale {
namespace {

// The partial results of a block stay in the first-level cache beside one block of an input.
constexpr int64_t kBlock = 2048;

bool IsFloat(DataType type) {
  return type == DataType::kFloat16 || type == DataType::kBFloat16 || type == DataType::kFloat32 ||
         type == DataType::kFloat64;
}

// A bool as TensorFlow stores it.
struct Bool {
  uint8_t bits;
};

// How elements of a type are stored, and what they are computed in.
template <typename T>
struct Number {
  using Compute = T;
  static T Load(T value) { return value; }
  static T Store(T value) { return value; }
};
template <>
struct Number<Float16> {
  using Compute = float;
  static float Load(Float16 value) { return ToFloat(value); }
  static Float16 Store(float value) { return ToFloat16(value); }
};
template <>
struct Number<BFloat16> {
  using Compute = float;
  static float Load(BFloat16 value) { return ToFloat(value); }
  static BFloat16 Store(float value) { return ToBFloat16(value); }
};
template <>
struct Number<Bool> {
  using Compute = uint8_t;
  static uint8_t Load(Bool value) { return value.bits != 0; }
  static Bool Store(uint8_t value) { return {value}; }
};

// Integers wrap around, as TensorFlow's do; in C++ only unsigned ones may.
template <typename T>
auto Wrapping(T value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<std::make_unsigned_t<T>>(value);
  } else {
    return value;
  }
}

struct Sum {
  template <typename T>
  static T Of(T a, T b) {
    return static_cast<T>(Wrapping(a) + Wrapping(b));
  }
};
struct Product {
  template <typename T>
  static T Of(T a, T b) {
    return static_cast<T>(Wrapping(a) * Wrapping(b));
  }
};
// Where either is not a number, neither is the result.
struct Max {
  template <typename T>
  static T Of(T a, T b) {
    return (a > b || a != a) ? a : b;
  }
};
struct Min {
  template <typename T>
  static T Of(T a, T b) {
    return (a < b || a != a) ? a : b;
  }
};

// What is done to a total before it is stored.
template <typename Compute>
struct Plain {
  Compute operator()(Compute total) const { return total; }
};
template <typename Compute>
struct Scaled {
  Compute scale;
  Compute operator()(Compute total) const { return total * scale; }
};
// Divided, not multiplied by the reciprocal: the mean of equal values is that value.
template <typename Compute>
struct Mean {
  Compute scale;
  Compute divisor;
  Compute operator()(Compute total) const { return total * scale / divisor; }
};

// `ivdep`: element i depends on nothing but the elements i, also where `out` is one of the inputs.
template <typename T, typename Operation, typename Finish>
void ReduceBlock(const std::vector<const void*>& inputs, int64_t begin, int64_t count, const Finish& finish, T* out) {
  using N = Number<T>;
  using Compute = typename N::Compute;
  const T* first = static_cast<const T*>(inputs.front()) + begin;
  const T* last = static_cast<const T*>(inputs.back()) + begin;
  out += begin;
  if (inputs.size() == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) out[i] = N::Store(finish(N::Load(first[i])));
    return;
  }
  if (inputs.size() == 2) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      out[i] = N::Store(finish(Operation::Of(N::Load(first[i]), N::Load(last[i]))));
    }
    return;
  }
  Compute total[kBlock];
  const T* second = static_cast<const T*>(inputs[1]) + begin;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) total[i] = Operation::Of(N::Load(first[i]), N::Load(second[i]));
  for (size_t k = 2; k + 1 < inputs.size(); ++k) {
    const T* next = static_cast<const T*>(inputs[k]) + begin;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) total[i] = Operation::Of(total[i], N::Load(next[i]));
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = N::Store(finish(Operation::Of(total[i], N::Load(last[i]))));
}

template <typename T, typename Operation, typename Finish>
void ReduceBlocks(const std::vector<const void*>& inputs, int64_t count, const Finish& finish, void* out) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t here = count - begin < kBlock ? count - begin : kBlock;
    ReduceBlock<T, Operation>(inputs, begin, here, finish, static_cast<T*>(out));
  }
}

template <typename T, typename Operation>
void ReduceAs(const Arithmetic& arithmetic, const std::vector<const void*>& inputs, int64_t count, void* out) {
  using Compute = typename Number<T>::Compute;
  if constexpr (std::is_floating_point_v<Compute>) {
    const Compute scale = static_cast<Compute>(arithmetic.scale);
    if (arithmetic.reduction == Reduction::kMean) {
      const Compute divisor = static_cast<Compute>(inputs.size());
      return ReduceBlocks<T, Operation>(inputs, count, Mean<Compute>{scale, divisor}, out);
    }
    if (arithmetic.scale != 1.0) return ReduceBlocks<T, Operation>(inputs, count, Scaled<Compute>{scale}, out);
  }
  ReduceBlocks<T, Operation>(inputs, count, Plain<Compute>{}, out);
}

template <typename T>
void ReduceTyped(const Arithmetic& arithmetic, const std::vector<const void*>& inputs, int64_t count, void* out) {
  // Of bools, a sum is any() and a product is all().
  constexpr bool is_bool = std::is_same_v<T, Bool>;
  switch (arithmetic.reduction) {
    case Reduction::kSum:
    case Reduction::kMean:
      return ReduceAs<T, std::conditional_t<is_bool, Max, Sum>>(arithmetic, inputs, count, out);
    case Reduction::kMax:
      return ReduceAs<T, Max>(arithmetic, inputs, count, out);
    case Reduction::kMin:
      return ReduceAs<T, Min>(arithmetic, inputs, count, out);
    case Reduction::kProduct:
      return ReduceAs<T, std::conditional_t<is_bool, Min, Product>>(arithmetic, inputs, count, out);
  }
}

}  // namespace

Status CheckArithmetic(const std::string& op, const Arithmetic& arithmetic) {
  const std::string what = "'" + op + "' cannot take the " + NameOf(arithmetic.reduction) + " of " +
                           NameOf(arithmetic.type) + " values";
  if (arithmetic.type == DataType::kBytes || arithmetic.type == DataType::kStrings) {
    return Status(Code::kInvalidArgument, what + ": " + NameOf(arithmetic.type) + " are only moved.");
  }
  const bool is_total = arithmetic.reduction == Reduction::kSum || arithmetic.reduction == Reduction::kMean;
  if (!is_total && arithmetic.scale != 1.0) {
    return Status(Code::kInvalidArgument, what + " with scale " + std::to_string(arithmetic.scale) +
                                              ": a scale is for sums and means.");
  }
  if (IsFloat(arithmetic.type)) return Status();
  if (arithmetic.reduction == Reduction::kMean) {
    return Status(Code::kInvalidArgument, what + ": a mean is for float16, bfloat16, float32 and float64.");
  }
  if (arithmetic.scale != 1.0) {
    return Status(Code::kInvalidArgument, what + " with scale " + std::to_string(arithmetic.scale) +
                                              ": a scale is for float16, bfloat16, float32 and float64.");
  }
  return Status();
}

void Reduce(const Arithmetic& arithmetic, const std::vector<const void*>& inputs, int64_t count, void* out) {
  if (count == 0) return;
  switch (arithmetic.type) {
    case DataType::kFloat16:
      return ReduceTyped<Float16>(arithmetic, inputs, count, out);
    case DataType::kBFloat16:
      return ReduceTyped<BFloat16>(arithmetic, inputs, count, out);
    case DataType::kFloat32:
      return ReduceTyped<float>(arithmetic, inputs, count, out);
    case DataType::kFloat64:
      return ReduceTyped<double>(arithmetic, inputs, count, out);
    case DataType::kInt32:
      return ReduceTyped<int32_t>(arithmetic, inputs, count, out);
    case DataType::kInt64:
      return ReduceTyped<int64_t>(arithmetic, inputs, count, out);
    case DataType::kBool:
      return ReduceTyped<Bool>(arithmetic, inputs, count, out);
    case DataType::kBytes:
    case DataType::kStrings:
      return;
  }
}

}  // namespace whale
