// float16 and bfloat16 from and to float32, by their bits.
//
// Without branches on the value, so that compilers turn loops of these into vector code.

#ifndef WHALE_KERNELS_COMMUNICATOR_HALF_H_
#define WHALE_KERNELS_COMMUNICATOR_HALF_H_

#include <cstdint>
#include <cstring>

namespace whale {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float ToFloat(BFloat16 value) { return FloatOf(static_cast<uint32_t>(value.bits) << 16); }

inline BFloat16 ToBFloat16(float value) {
  const uint32_t bits = BitsOf(value);
  // Adds just under one half of the last place that stays, or exactly half where that place is odd: nearest even.
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // A NaN must not round up into an infinity or to zero.
  const uint32_t quiet = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded)};
}

inline float ToFloat(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t normal = magnitude + 0x38000000;  // the exponent's bias goes from 15 to 127
  // Subnormals are m * 2^-24: 0.5 + m * 2^-24 less 0.5, so that no float32 on the way is subnormal (TensorFlow's
  // threads flush those to zero).
  const uint32_t subnormal = BitsOf(FloatOf((magnitude >> 13) | 0x3f000000) - 0.5f);
  const uint32_t finite = magnitude < 0x00800000 ? subnormal : normal;
  const uint32_t infinite = magnitude | 0x7f800000;
  return FloatOf(sign | (magnitude >= 0x0f800000 ? infinite : finite));
}

inline Float16 ToFloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal numbers: the bias from 127 to 15, then rounded to nearest even as above. May carry into infinity, rightly.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormals: adding 0.5 aligns the last place of float16 (2^-24) with the last place of float32, and rounds.
  const uint32_t subnormal = BitsOf(FloatOf(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t small = magnitude < 0x38800000 ? subnormal : normal;  // 2^-14
  const uint32_t finite = magnitude < 0x47800000 ? small : 0x7c00;     // 2^16
  return {static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : finite))};
}

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_HALF_H_
