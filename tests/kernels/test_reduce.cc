// The arithmetic: rounding, values that are no numbers, overflow, scale, and what is refused.

#include <cmath>
#include <limits>
#include <random>

#include "kernels/communicator/half.h"
#include "kernels/communicator/reduce.h"
#include "tests/kernels/checks.h"

namespace whale {
namespace {

void Float16RoundTripsAndRoundsToNearestEven() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float value = ToFloat(half);
    const bool is_nan = (bits & 0x7fff) > 0x7c00;
    CHECK(std::isnan(value) == is_nan);
    if (is_nan) {
      CHECK((ToFloat16(value).bits & 0x7fff) > 0x7c00);
      continue;
    }
    CHECK(ToFloat16(value).bits == bits);
    if ((bits & 0x7fff) >= 0x7bff) continue;
    // Between a value and the next one: below, at and above the middle.
    const float next = ToFloat(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = (value + next) / 2;
    CHECK(ToFloat16(std::nextafter(middle, value)).bits == bits);
    CHECK(ToFloat16(std::nextafter(middle, next)).bits == bits + 1);
    CHECK(ToFloat16(middle).bits == bits + (bits & 1));
  }
  CHECK(ToFloat16(65519.0f).bits == 0x7bff);
  CHECK(ToFloat16(65520.0f).bits == 0x7c00);
  CHECK(ToFloat16(1e30f).bits == 0x7c00);
}

void BFloat16RoundsToNearestEven() {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const float value = FloatOf(bits);
    const BFloat16 rounded = ToBFloat16(value);
    if (std::isnan(value)) {
      CHECK(std::isnan(ToFloat(rounded)));
      continue;
    }
    const uint32_t low = bits & 0xffff;
    const uint32_t high = bits >> 16;
    const bool up = low > 0x8000 || (low == 0x8000 && (high & 1));
    CHECK(rounded.bits == static_cast<uint16_t>(high + up));
  }
}

template <typename T>
std::vector<T> Reduced(const Arithmetic& arithmetic, const std::vector<std::vector<T>>& inputs) {
  std::vector<const void*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  std::vector<T> out(inputs[0].size());
  Reduce(arithmetic, pointers, static_cast<int64_t>(out.size()), out.data());
  return out;
}

void HalvesAreAddedInFloat32() {
  // 2048 + 1 is 2048 in float16: only a sum in float32 gets to 2052.
  const Float16 large = ToFloat16(2048), one = ToFloat16(1);
  const auto sum = Reduced<Float16>({DataType::kFloat16, Reduction::kSum, 1.0}, {{large}, {one}, {one}, {one}, {one}});
  CHECK(ToFloat(sum[0]) == 2052.0f);
}

void SumsAreInTheOrderOfTheInputs() {
  for (const int count : {1, 2, 3, 5, 8}) {
    std::mt19937 random(count);
    std::vector<std::vector<float>> inputs(count, std::vector<float>(5003));
    for (auto& input : inputs) {
      for (float& value : input) value = static_cast<float>(random()) / 1e6f - 2000.0f;
    }
    const auto out = Reduced<float>({DataType::kFloat32, Reduction::kMean, 3.0}, inputs);
    for (size_t i = 0; i < out.size(); ++i) {
      float total = inputs[0][i];
      for (int k = 1; k < count; ++k) total += inputs[k][i];
      CHECK(out[i] == total * 3.0f / static_cast<float>(count));
    }
  }
}

void AnInputMayBeTheOutput() {
  for (size_t own = 0; own < 4; ++own) {
    std::vector<std::vector<int32_t>> inputs(4, std::vector<int32_t>(10001));
    for (size_t k = 0; k < 4; ++k) {
      for (size_t i = 0; i < inputs[k].size(); ++i) inputs[k][i] = static_cast<int32_t>(k * 100000 + i);
    }
    std::vector<const void*> pointers;
    for (auto& input : inputs) pointers.push_back(input.data());
    Reduce({DataType::kInt32, Reduction::kSum, 1.0}, pointers, 10001, inputs[own].data());
    for (size_t i = 0; i < inputs[own].size(); ++i) CHECK(inputs[own][i] == static_cast<int32_t>(600000 + 4 * i));
  }
}

void WhatIsNoNumberStaysSo() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Reduction reduction : {Reduction::kMax, Reduction::kMin, Reduction::kSum, Reduction::kProduct}) {
    const auto out = Reduced<float>({DataType::kFloat32, reduction, 1.0}, {{nan, 1, 2}, {1, nan, 3}, {2, 3, nan}});
    for (const float value : out) CHECK(std::isnan(value));
  }
}

void IntegersWrapAround() {
  const int32_t most = std::numeric_limits<int32_t>::max();
  CHECK(Reduced<int32_t>({DataType::kInt32, Reduction::kSum, 1.0}, {{most}, {1}})[0] ==
        std::numeric_limits<int32_t>::min());
  CHECK(Reduced<int32_t>({DataType::kInt32, Reduction::kProduct, 1.0}, {{most}, {2}})[0] == -2);
}

void WhatMeansNothingIsRefused() {
  auto message = [](DataType type, Reduction reduction, double scale) {
    const Status status = CheckArithmetic("grads", {type, reduction, scale});
    CHECK(status.ok() || status.code() == Code::kInvalidArgument);
    return status.message();
  };
  CHECK_SAME(message(DataType::kFloat16, Reduction::kMean, 0.5), "");
  CHECK_SAME(message(DataType::kBool, Reduction::kProduct, 1), "");
  CHECK_SAME(message(DataType::kInt32, Reduction::kMean, 1),
             "'grads' cannot take the mean of int32 values: a mean is for float16, bfloat16, float32 and float64.");
  CHECK_SAME(message(DataType::kInt64, Reduction::kSum, 0.5),
             "'grads' cannot take the sum of int64 values with scale 0.500000: a scale is for float16, bfloat16, "
             "float32 and float64.");
  CHECK_SAME(message(DataType::kFloat32, Reduction::kMax, 2),
             "'grads' cannot take the max of float32 values with scale 2.000000: a scale is for sums and means.");
  CHECK_SAME(message(DataType::kBytes, Reduction::kSum, 1),
             "'grads' cannot take the sum of bytes values: bytes are only moved.");
}

}  // namespace
}  // namespace whale

int main() {
  whale::Float16RoundTripsAndRoundsToNearestEven();
  whale::BFloat16RoundsToNearestEven();
  whale::HalvesAreAddedInFloat32();
  whale::SumsAreInTheOrderOfTheInputs();
  whale::AnInputMayBeTheOutput();
  whale::WhatIsNoNumberStaysSo();
  whale::IntegersWrapAround();
  whale::WhatMeansNothingIsRefused();
  return 0;
}
