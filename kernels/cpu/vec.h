// One vector type over four instruction sets. A source that includes this header is compiled once
// per set, with MDPRUNE_ISA naming the namespace, so that one binary holds all of them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef MDPRUNE_ISA
#error "MDPRUNE_ISA must name the instruction set"
#endif

// The portable set is plain C++ whatever the compiler's flags allow.
#if defined(MDPRUNE_PORTABLE)
#elif defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace mdprune::cpu::MDPRUNE_ISA {

// Beside arithmetic: where_less(a, b, x, y) is a < b ? x : y, y where either is NaN, and pow2(n) is
// 2^n for integers in [-126, 127]. max and min give their second operand where either is NaN,
// except on NEON, which gives NaN.

#if defined(__AVX512F__) && !defined(MDPRUNE_PORTABLE)

struct Vec {
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kRegisters = 32;
  __m512 v;
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, std::size_t n) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << n) - 1U), p)};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, std::size_t n) const {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1U << n) - 1U), v);
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  friend Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
  }
  friend Vec pow2(Vec n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
  }
};

#elif defined(__AVX2__) && !defined(MDPRUNE_PORTABLE)

struct Vec {
  static constexpr std::size_t kLanes = 8;
  static constexpr std::size_t kRegisters = 16;
  __m256 v;
  static __m256i mask(std::size_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, std::size_t n) { return {_mm256_maskload_ps(p, mask(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, std::size_t n) const { _mm256_maskstore_ps(p, mask(n), v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  friend Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
  }
  friend Vec pow2(Vec n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
  }
};

#elif defined(__ARM_NEON) && !defined(MDPRUNE_PORTABLE)

struct Vec {
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kRegisters = 32;
  float32x4_t v;
  static Vec zero() { return {vdupq_n_f32(0.0F)}; }
  static Vec all(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load(const float* p, std::size_t n) {
    float lanes[kLanes] = {};
    std::memcpy(lanes, p, n * sizeof(float));
    return load(lanes);
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store(float* p, std::size_t n) const {
    float lanes[kLanes];
    store(lanes);
    std::memcpy(p, lanes, n * sizeof(float));
  }
  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  friend Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {vminq_f32(a.v, b.v)}; }
  friend Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return {vbslq_f32(vcltq_f32(a.v, b.v), x.v, y.v)};
  }
  friend Vec pow2(Vec n) {
    const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
    return {vreinterpretq_f32_s32(vshlq_n_s32(biased, 23))};
  }
};

#else

struct Vec {
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kRegisters = 16;
  float v[kLanes];
  template <typename F>
  static Vec each(F f) {
    Vec r;
    for (std::size_t i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  static Vec zero() { return all(0.0F); }
  static Vec all(float x) {
    return each([&](std::size_t) { return x; });
  }
  static Vec load(const float* p) { return load(p, kLanes); }
  static Vec load(const float* p, std::size_t n) {
    Vec r = zero();
    std::memcpy(r.v, p, n * sizeof(float));
    return r;
  }
  void store(float* p) const { store(p, kLanes); }
  void store(float* p, std::size_t n) const { std::memcpy(p, v, n * sizeof(float)); }
  friend Vec operator+(Vec a, Vec b) {
    return each([&](std::size_t i) { return a.v[i] + b.v[i]; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return each([&](std::size_t i) { return a.v[i] - b.v[i]; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return each([&](std::size_t i) { return a.v[i] * b.v[i]; });
  }
  friend Vec operator/(Vec a, Vec b) {
    return each([&](std::size_t i) { return a.v[i] / b.v[i]; });
  }
  friend Vec fma(Vec a, Vec b, Vec c) {
    return each([&](std::size_t i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  friend Vec max(Vec a, Vec b) {
    return each([&](std::size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  friend Vec min(Vec a, Vec b) {
    return each([&](std::size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  friend Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return each([&](std::size_t i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
  }
  friend Vec pow2(Vec n) {
    return each([&](std::size_t i) {
      const bool number = n.v[i] == n.v[i];  // converting a NaN would be undefined
      const std::uint32_t bits = static_cast<std::uint32_t>((number ? int(n.v[i]) : 0) + 127) << 23;
      float x;
      std::memcpy(&x, &bits, sizeof(x));
      return x;
    });
  }
};

#endif

}  // namespace mdprune::cpu::MDPRUNE_ISA
