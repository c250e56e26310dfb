// CUDA's half type for a host compiler: what the kernels use of it.

#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  std::uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

// To the nearest, ties to even, as cvt.rn.f16.f32.
inline __half __float2half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  bits &= 0x7fffffffU;
  if (bits > 0x7f800000U) return {0x7fff};
  if (bits >= 0x477ff000U) return {static_cast<std::uint16_t>(sign | 0x7c00U)};
  std::uint32_t kept;  // the significand and exponent in half's unit, with `shift` bits below it
  std::uint32_t shift = 13;
  if (bits >= 0x38800000U) {
    kept = bits - 0x38000000U;
  } else {
    const std::uint32_t exponent = bits >> 23;
    shift = 126 - (exponent < 101 ? 101 : exponent);
    kept = bits == 0 ? 0 : (bits & 0x7fffffU) | 0x800000U;
    if (exponent < 101) return {static_cast<std::uint16_t>(sign)};
  }
  const std::uint32_t rest = kept & ((1U << shift) - 1);
  const std::uint32_t middle = 1U << (shift - 1);
  kept >>= shift;
  if (rest > middle || (rest == middle && (kept & 1U) != 0)) ++kept;
  return {static_cast<std::uint16_t>(sign | kept)};
}

inline float __half2float(__half half) {
  const std::uint32_t magnitude = half.bits & 0x7fffU;
  float value;
  if (magnitude < 0x400U) {
    value = static_cast<float>(magnitude) * 5.9604644775390625e-8F;  // 2^-24
  } else {
    const std::uint32_t exponent = magnitude >= 0x7c00U ? 0x70000000U : 0x38000000U;
    const std::uint32_t bits = (magnitude << 13) + exponent;
    std::memcpy(&value, &bits, sizeof value);
  }
  return (half.bits & 0x8000U) != 0 ? -value : value;
}

inline __half __float2half_rn(float value) { return __float2half(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float __low2float(__half2 pair) { return __half2float(pair.x); }
inline float __high2float(__half2 pair) { return __half2float(pair.y); }
