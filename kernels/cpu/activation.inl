// Activations on vectors: exp, tanh and erf to about 1e-7 of the result, the rare ones by libm,
// lane by lane.
//
// Sources that are compiled for an instruction set call C functions only (expf, not std::exp): an
// inline function of the standard library compiled here could replace its portable twin at link
// time and run on a processor without these instructions.

#pragma once

#include <math.h>

#include "kernels.h"
#include "vec.h"

namespace mdprune::cpu::MDPRUNE_ISA {

inline Vec operator-(Vec x) { return Vec::all(-0.0F) - x; }

// c0 x^n + ... + cn
template <typename... Rest>
inline Vec polynomial(Vec x, float first, Rest... rest) {
  Vec sum = Vec::all(first);
  ((sum = fma(sum, x, Vec::all(rest))), ...);
  return sum;
}

template <typename F>
inline Vec each_lane(Vec x, F f) {
  float lanes[Vec::kLanes];
  x.store(lanes);
  for (float& lane : lanes) lane = f(lane);
  return Vec::load(lanes);
}

// 2^n exp(r) with r in [-ln 2 / 2, ln 2 / 2]; the power in two steps, so that it may leave the
// range of normal numbers. Coefficients: Cephes, expf.
inline Vec exp(Vec x) {
  x = min(Vec::all(89.0F), max(Vec::all(-104.0F), x));
  const Vec magic = Vec::all(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = fma(x, Vec::all(1.44269504088896341F), magic) - magic;
  Vec r = fma(n, Vec::all(-0.693359375F), x);
  r = fma(n, Vec::all(2.12194440e-4F), r);
  Vec p = polynomial(r, 1.9875691500e-4F, 1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F,
                     1.6666665459e-1F, 5.0000001201e-1F);
  p = fma(p, r * r, r) + Vec::all(1.0F);
  const Vec half = fma(n, Vec::all(0.5F), magic) - magic;
  return p * pow2(half) * pow2(n - half);
}

// Near 0 a polynomial, elsewhere sign(x) (1 - 2 / (exp(2 |x|) + 1)). Coefficients: Cephes, tanhf.
inline Vec tanh(Vec x) {
  const Vec one = Vec::all(1.0F);
  const Vec magnitude = max(-x, x);
  const Vec square = x * x;
  const Vec p = polynomial(square, -5.70498872745e-3F, 2.06390887954e-2F, -5.37397155531e-2F,
                           1.33314422036e-1F, -3.33332819422e-1F);
  const Vec small = fma(p * square, x, x);
  const Vec large = one - Vec::all(2.0F) / (exp(magnitude + magnitude) + one);
  const Vec with_sign = where_less(x, Vec::zero(), -large, large);
  return where_less(magnitude, Vec::all(0.625F), small, with_sign);
}

// exp(x) - 1 for x <= 0 without cancellation.
inline Vec expm1_negative(Vec x) {
  const Vec t = tanh(x * Vec::all(0.5F));
  return (t + t) / (Vec::all(1.0F) - t);
}

// A rational approximation on [-4, 4], outside of which erf rounds to +-1. Coefficients: Eigen,
// generic_fast_erf_float.
inline Vec erf(Vec x) {
  x = min(Vec::all(4.0F), max(Vec::all(-4.0F), x));
  const Vec s = x * x;
  const Vec p = polynomial(s, -2.72614225801306e-10F, 2.77068142495902e-08F, -2.10102402082508e-06F,
                           -5.69250639462346e-05F, -7.34990630326855e-04F, -2.95459980854025e-03F,
                           -1.60960333262415e-02F);
  const Vec q = polynomial(s, -1.45660718464996e-05F, -2.13374055278905e-04F,
                           -1.68282697438203e-03F, -7.37332916720468e-03F, -1.42647390514189e-02F);
  return x * p / q;
}

inline Vec sigmoid(Vec x) { return Vec::all(1.0F) / (exp(-x) + Vec::all(1.0F)); }

inline Vec clip(Vec x, Vec low, Vec high) { return min(high, max(low, x)); }  // keeps a NaN

inline Vec hard_sigmoid(Vec x, float a, float b) {
  return clip(fma(x, Vec::all(a), Vec::all(b)), Vec::zero(), Vec::all(1.0F));
}

// x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2); from 20 on that is x.
inline Vec mish(Vec x) {
  const Vec e = exp(min(Vec::all(20.0F), x));
  const Vec n = e * (e + Vec::all(2.0F));
  return x * (n / (n + Vec::all(2.0F)));
}

inline Vec elu(Vec x, float alpha, float inside) {
  const Vec negative = min(Vec::zero(), x);
  const Vec y = Vec::all(alpha) * expm1_negative(negative * Vec::all(inside));
  return where_less(Vec::zero(), x, x, y);
}

inline Vec activate(Vec x, const Activation& activation) {
  const float a = activation.a;
  const float b = activation.b;
  const Vec zero = Vec::zero();
  const Vec one = Vec::all(1.0F);
  switch (activation.code) {
    case kRelu: return max(zero, x);
    case kClip: return clip(x, Vec::all(a), Vec::all(b));
    case kLeakyRelu: return where_less(x, zero, x * Vec::all(a), x);
    case kSigmoid: return sigmoid(x);
    case kSilu: return x * sigmoid(x);
    case kHardSigmoid: return hard_sigmoid(x, a, b);
    case kHardSwish: return x * hard_sigmoid(x, 1.0F / 6.0F, 0.5F);
    case kTanh: return tanh(x);
    case kGelu: return x * Vec::all(0.5F) * (one + erf(x * Vec::all(0.70710678118654752F)));
    case kGeluTanh: {
      const Vec cubic = fma(x * x * x, Vec::all(0.044715F), x);
      return x * Vec::all(0.5F) * (one + tanh(cubic * Vec::all(0.79788456080286536F)));
    }
    case kElu: return elu(x, a, 1.0F);
    case kSoftplus:
      return each_lane(x, [](float v) { return (v > 0.0F ? v : 0.0F) + log1pf(expf(-fabsf(v))); });
    case kMish: return mish(x);
    case kExp: return exp(x);
    case kLog: return each_lane(x, [](float v) { return logf(v); });
    case kSqrt: return each_lane(x, [](float v) { return sqrtf(v); });
    case kReciprocal: return one / x;
    case kNegate: return -x;
    case kAbs: return max(-x, x);
    case kErf: return erf(x);
    case kSign: return where_less(zero, x, one, where_less(x, zero, -one, x));
    case kFloor: return each_lane(x, [](float v) { return floorf(v); });
    case kCeil: return each_lane(x, [](float v) { return ceilf(v); });
    case kRound: return each_lane(x, [](float v) { return nearbyintf(v); });
    case kSin: return each_lane(x, [](float v) { return sinf(v); });
    case kCos: return each_lane(x, [](float v) { return cosf(v); });
    case kSoftsign: return x / (one + max(-x, x));
    case kSquare: return x * x;
    case kSelu: return Vec::all(b) * elu(x, a, 1.0F);
    case kNot: return each_lane(x, [](float v) { return v == 0.0F ? 1.0F : 0.0F; });
    case kCelu: return elu(x, a, 1.0F / a);
    case kThresholdedRelu: return where_less(Vec::all(a), x, x, zero);
    default: return x;
  }
}

struct Identity {
  Vec operator()(Vec x) const { return x; }
};

struct Relu {
  Vec operator()(Vec x) const { return max(Vec::zero(), x); }
};

struct Clip {
  Vec low;
  Vec high;
  Vec operator()(Vec x) const { return clip(x, low, high); }
};

struct Silu {
  Vec operator()(Vec x) const { return x * sigmoid(x); }
};

struct HardSwish {
  Vec operator()(Vec x) const { return x * hard_sigmoid(x, 1.0F / 6.0F, 0.5F); }
};

struct AnyActivation {
  Activation activation;
  Vec operator()(Vec x) const { return activate(x, activation); }
};

// Calls f with a function object for the activation, so that the loops in f are compiled once for
// each common one and do not ask again at every vector.
template <typename F>
inline void with_activation(const Activation& activation, F&& f) {
  switch (activation.code) {
    case kIdentity: return f(Identity{});
    case kRelu: return f(Relu{});
    case kClip: return f(Clip{Vec::all(activation.a), Vec::all(activation.b)});
    case kSilu: return f(Silu{});
    case kHardSwish: return f(HardSwish{});
    default: return f(AnyActivation{activation});
  }
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
