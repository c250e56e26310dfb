// What follows the sums of a convolution, filter by filter:
// v = sum * scale + shift + residual, y = A(v), y2 = A2(y * scale2 + shift2).

#pragma once

#include "activation.cuh"
#include "types.cuh"

namespace mdprune::cuda {

struct Epilogue {
  void* y;
  const float* scale;
  const float* shift;
  const void* residual;
  const std::int32_t* residual_index;
  std::int32_t residual_channels;
  std::int32_t filters;  // of a pixel of y
  std::int32_t stored;   // those that have weights; y is 0 behind them: zero weights meet it
  Activation activation;
  void* y2;
  const float* scale2;
  const float* shift2;
  Activation activation2;
  bool vectors;  // chunks of filters are aligned in all operands
};

// values[i] of the pack that begins at `from`, or of as many elements as there are.
template <typename T, int count>
__device__ __forceinline__ void load_values(float (&values)[count], const T* from, int valid,
                                            bool vectors) {
  if (vectors) {
    const auto pack = *reinterpret_cast<const Pack<T, count>*>(from);
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = to_float(pack.values[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = i < valid ? to_float(from[i]) : 0.0F;
}

template <typename T, int count>
__device__ __forceinline__ void store_values(T* to, const float (&values)[count], int valid,
                                             bool vectors) {
  if (vectors) {
    Pack<T, count> pack;
#pragma unroll
    for (int i = 0; i < count; ++i) pack.values[i] = from_float<T>(values[i]);
    *reinterpret_cast<Pack<T, count>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (i < valid) to[i] = from_float<T>(values[i]);
  }
}

// Either may be null.
template <int count>
__device__ __forceinline__ void scale_and_shift(float (&values)[count], const float* scale,
                                                const float* shift, int filter, int valid) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (i >= valid) continue;
    const float by = scale != nullptr ? __ldg(scale + filter + i) : 1.0F;
    values[i] = fmaf(values[i], by, shift != nullptr ? __ldg(shift + filter + i) : 0.0F);
  }
}

// One function for a whole module, so that an epilogue has eight calls of it and not eight copies.
inline __device__ __noinline__ float activate_apart(float x, std::uint32_t code, float a, float b) {
  return activate(x, Activation{code, a, b});
}

template <int count>
__device__ __forceinline__ void activate_all(float (&values)[count], const Activation& activation) {
  if (activation.code == kIdentity) return;
  if (activation.code == kRelu) {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = larger(0.0F, values[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    values[i] = activate_apart(values[i], activation.code, activation.a, activation.b);
  }
}

// Those of `values` from number `begin` on.
template <int count>
__device__ __forceinline__ void clear_from(float (&values)[count], int begin) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (i >= begin) values[i] = 0.0F;
  }
}

// Sums of `valid` <= count filters of one pixel.
template <typename T, int count>
__device__ __forceinline__ void finish(const Epilogue& e, float (&values)[count], long long pixel,
                                       int filter, int valid) {
  const long long at = pixel * e.filters + filter;
  const bool vectors = e.vectors && valid == count;
  scale_and_shift(values, e.scale, e.shift, filter, valid);
  if (e.residual != nullptr) {
    const T* const residual = static_cast<const T*>(e.residual);
    float added[count];
    if (e.residual_index == nullptr) {
      load_values(added, residual + at, valid, vectors);
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        added[i] = 0.0F;
        if (i >= valid) continue;
        const int channel = __ldg(e.residual_index + filter + i);
        added[i] = to_float(residual[pixel * e.residual_channels + channel]);
      }
    }
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] += added[i];
  }
  activate_all(values, e.activation);
  clear_from(values, e.stored - filter);
  store_values(static_cast<T*>(e.y) + at, values, valid, vectors);
  if (e.y2 == nullptr) return;
  scale_and_shift(values, e.scale2, e.shift2, filter, valid);
  activate_all(values, e.activation2);
  clear_from(values, e.stored - filter);
  store_values(static_cast<T*>(e.y2) + at, values, valid, vectors);
}

}  // namespace mdprune::cuda
