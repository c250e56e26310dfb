// What the kernels of every device share: activations, kinds of operators, the geometry of a
// window. Codes and formulas are those of docs/native-format.md.

#pragma once

#include <cstddef>
#include <cstdint>

namespace mdprune::kinds {

enum ActivationCode : std::uint32_t {
  kIdentity,
  kRelu,
  kClip,
  kLeakyRelu,
  kSigmoid,
  kSilu,
  kHardSigmoid,
  kHardSwish,
  kTanh,
  kGelu,
  kGeluTanh,
  kElu,
  kSoftplus,
  kMish,
  kExp,
  kLog,
  kSqrt,
  kReciprocal,
  kNegate,
  kAbs,
  kErf,
  kSign,
  kFloor,
  kCeil,
  kRound,
  kSin,
  kCos,
  kSoftsign,
  kSquare,
  kSelu,
  kNot,
  kCelu,
  kThresholdedRelu,
  kActivationCodes
};

struct Activation {
  std::uint32_t code = kIdentity;
  float a = 0.0F;
  float b = 0.0F;
};

enum PoolKind : std::uint32_t { kMaximumPool, kMeanInside, kMeanOfKernel, kPoolKinds };

enum BinaryKind : std::uint32_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kPower,
  kMinimum,
  kMaximum,
  kPRelu,
  kEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  kModulo,
  kBinaryKinds
};

enum ReduceKind : std::uint32_t {
  kMean,
  kSum,
  kMax,
  kMin,
  kProduct,
  kL1,
  kL2,
  kSumOfSquares,
  kLogOfSum,
  kLogOfSumOfExponentials,
  kReduceKinds
};

// Geometry of a window. Unused leading spatial axes have size 1, stride 1, dilation 1, pad 0.
struct Window {
  std::size_t input[3];
  std::size_t output[3];
  std::size_t kernel[3];
  std::size_t stride[3];
  std::size_t dilation[3];
  std::size_t pad[3];
};

}  // namespace mdprune::kinds
