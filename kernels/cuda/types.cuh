// Numbers as kernels load and store them; all arithmetic is in float. And the shared memory whose
// size the launch gives.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels.h"

namespace mdprune::cuda {

using Half = __half;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return __half2float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Half from_float<Half>(float value) {
  return __float2half_rn(value);
}

// Dynamic shared memory as an array of bytes, aligned to 16.
#if defined(__CUDACC__)
#define MDPRUNE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define MDPRUNE_DYNAMIC_SHARED(name) unsigned char* const name = emulate::dynamic_shared()
#endif

// Neighbours that are loaded and stored at once: 16 bytes of T if they are full.
template <typename T, int count>
struct alignas(sizeof(T) * count) Pack {
  T values[count];
};

// Calls f with a value of the type: f(float{}) or f(Half{}).
template <typename F>
int with_type(Type type, F&& f) {
  return type == kFloat ? f(float{}) : f(Half{});
}

}  // namespace mdprune::cuda
