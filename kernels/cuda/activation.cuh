// Activations on the device: docs/native-format.md, in float, for every kernel that has an
// epilogue.
//
// A NaN stays a NaN where it does in the CPU kernels: fminf and fmaxf drop it, so `larger` and
// `smaller` are used, which give their second operand where either is NaN.

#pragma once

#include "types.cuh"

namespace mdprune::cuda {

__device__ __forceinline__ float larger(float a, float b) { return a > b ? a : b; }

__device__ __forceinline__ float smaller(float a, float b) { return a < b ? a : b; }

__device__ __forceinline__ float clip(float x, float low, float high) {
  return smaller(high, larger(low, x));
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

__device__ __forceinline__ float elu(float x, float alpha, float inside) {
  return 0.0F < x ? x : alpha * expm1f(inside * smaller(0.0F, x));
}

// x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2); from 20 on that is x.
__device__ __forceinline__ float mish(float x) {
  const float e = expf(smaller(20.0F, x));
  const float n = e * (e + 2.0F);
  return x * (n / (n + 2.0F));
}

// The activations that networks rarely fuse. One function for a whole module: inlined, they would
// make up most of every kernel.
inline __device__ __noinline__ float activate_rarely(float x, std::uint32_t code, float a,
                                                     float b) {
  switch (code) {
    case kHardSigmoid: return clip(fmaf(x, a, b), 0.0F, 1.0F);
    case kTanh: return tanhf(x);
    case kGelu: return x * 0.5F * (1.0F + erff(x * 0.70710678118654752F));
    case kGeluTanh: {
      const float cubic = fmaf(x * x * x, 0.044715F, x);
      return x * 0.5F * (1.0F + tanhf(cubic * 0.79788456080286536F));
    }
    case kElu: return elu(x, a, 1.0F);
    case kSoftplus: return (x > 0.0F ? x : 0.0F) + log1pf(expf(-fabsf(x)));
    case kMish: return mish(x);
    case kExp: return expf(x);
    case kLog: return logf(x);
    case kSqrt: return sqrtf(x);
    case kReciprocal: return 1.0F / x;
    case kNegate: return -x;
    case kAbs: return fabsf(x);
    case kErf: return erff(x);
    case kSign: return x > 0.0F ? 1.0F : x < 0.0F ? -1.0F : x;
    case kFloor: return floorf(x);
    case kCeil: return ceilf(x);
    case kRound: return rintf(x);
    case kSin: return sinf(x);
    case kCos: return cosf(x);
    case kSoftsign: return x / (1.0F + fabsf(x));
    case kSquare: return x * x;
    case kSelu: return b * elu(x, a, 1.0F);
    case kNot: return x == 0.0F ? 1.0F : 0.0F;
    case kCelu: return elu(x, a, 1.0F / a);
    case kThresholdedRelu: return a < x ? x : 0.0F;
    default: return x;
  }
}

__device__ __forceinline__ float activate(float x, const Activation& activation) {
  switch (activation.code) {
    case kIdentity: return x;
    case kRelu: return larger(0.0F, x);
    case kClip: return clip(x, activation.a, activation.b);
    case kLeakyRelu: return x < 0.0F ? x * activation.a : x;
    case kSigmoid: return sigmoid(x);
    case kSilu: return x * sigmoid(x);
    case kHardSwish: return x * clip(fmaf(x, 1.0F / 6.0F, 0.5F), 0.0F, 1.0F);
    default: return activate_rarely(x, activation.code, activation.a, activation.b);
  }
}

}  // namespace mdprune::cuda
