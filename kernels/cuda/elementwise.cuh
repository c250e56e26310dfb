// Element by element: affine, unary, binary, select, fill, and between types.
//
// `width` elements of a thread are loaded at once; 1 where sizes or addresses do not allow more.

#pragma once

#include "activation.cuh"
#include "axes.cuh"
#include "element.cuh"

namespace mdprune::cuda {

template <typename T, int width>
__global__ void unary_kernel(std::size_t n, const T* x, T* y, Activation activation) {
  for_each(n / width, [&](std::size_t i) {
    float v[width];
    load(x + i * width, v);
#pragma unroll
    for (int k = 0; k < width; ++k) v[k] = activate(v[k], activation);
    store(v, y + i * width);
  });
  for_each(n % width, [&](std::size_t i) {
    const std::size_t at = n - n % width + i;
    y[at] = from_float<T>(activate(to_float(x[at]), activation));
  });
}

// y = A(x * scale + shift) for neighbouring channels whose scales and shifts stay in registers.
// Widths above 1 need n % width == 0 and, where x is not indexed, as much of n_in.
template <typename T, int width>
__global__ void affine_kernel(std::size_t rows, std::size_t n_in, std::size_t n, const T* x, T* y,
                              const std::int32_t* index, const float* scale, const float* shift,
                              Activation activation) {
  const std::size_t column_threads = std::size_t{gridDim.x} * blockDim.x;
  const std::size_t row_threads = std::size_t{gridDim.y} * blockDim.y;
  const std::size_t first_row = std::size_t{blockIdx.y} * blockDim.y + threadIdx.y;
  std::size_t column = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; column < n / width; column += column_threads) {
    const std::size_t c = column * width;
    float factor[width], term[width];
    std::int32_t channel[width];
#pragma unroll
    for (int k = 0; k < width; ++k) {
      factor[k] = scale != nullptr ? scale[c + k] : 1.0F;
      term[k] = shift != nullptr ? shift[c + k] : 0.0F;
      channel[k] = index != nullptr ? index[c + k] : 0;
    }
    for (std::size_t row = first_row; row < rows; row += row_threads) {
      float v[width];
      if (index == nullptr) {
        load(x + row * n_in + c, v);
      } else {
#pragma unroll
        for (int k = 0; k < width; ++k) v[k] = to_float(x[row * n_in + channel[k]]);
      }
#pragma unroll
      for (int k = 0; k < width; ++k) v[k] = activate(fmaf(v[k], factor[k], term[k]), activation);
      store(v, y + row * n + c);
    }
  }
}

__device__ __forceinline__ float modulo(float a, float b) {
  const float remainder = fmodf(a, b);
  return remainder != 0.0F && (remainder < 0.0F) != (b < 0.0F) ? remainder + b : remainder;
}

// The kinds that are large, once for all elements of a thread.
inline __device__ __noinline__ float combine_rarely(std::uint32_t kind, float a, float b) {
  return kind == kPower ? powf(a, b) : modulo(a, b);
}

__device__ __forceinline__ float combine(std::uint32_t kind, float a, float b) {
  switch (kind) {
    case kAdd: return a + b;
    case kSubtract: return a - b;
    case kMultiply: return a * b;
    case kDivide: return a / b;
    case kMinimum: return smaller(a, b);
    case kMaximum: return larger(a, b);
    case kPRelu: return a < 0.0F ? a * b : a;
    case kEqual: return a == b ? 1.0F : 0.0F;
    case kLess: return a < b ? 1.0F : 0.0F;
    case kLessOrEqual: return a <= b ? 1.0F : 0.0F;
    case kGreater: return a > b ? 1.0F : 0.0F;
    case kGreaterOrEqual: return a >= b ? 1.0F : 0.0F;
    default: return combine_rarely(kind, a, b);
  }
}

// `width` neighbours of an operand along the last axis, or one element as often.
template <int width, typename T>
__device__ __forceinline__ void load_operand(const T* from, bool varies, float (&to)[width]) {
  if (varies) return load(from, to);
  const float all = to_float(*from);
#pragma unroll
  for (int k = 0; k < width; ++k) to[k] = all;
}

// Sizes and strides of the last axis count elements; widths above 1 need strides of 0 or 1 there
// and multiples of the width elsewhere.
template <typename T, int width>
__global__ void binary_kernel(std::uint32_t kind, Axes<2> axes, const T* a, const T* b, T* y,
                              Activation activation) {
  const std::size_t n = axes.columns();
  for_each_cell(axes.rows(), n / width, [&](std::size_t row, std::size_t column) {
    std::ptrdiff_t offset[2];
    axes.offsets(row, offset);
    const std::size_t i = column * width;
    float v[width], w[width];
    load_operand(a + offset[0] + axes.along(0, i), axes.stride[0][axes.rank - 1] != 0, v);
    load_operand(b + offset[1] + axes.along(1, i), axes.stride[1][axes.rank - 1] != 0, w);
#pragma unroll
    for (int k = 0; k < width; ++k) v[k] = activate(combine(kind, v[k], w[k]), activation);
    store(v, y + row * n + i);
  });
}

template <typename T>
__global__ void select_kernel(Axes<3> axes, const T* c, const T* a, const T* b, T* y) {
  const std::size_t n = axes.columns();
  for_each_cell(axes.rows(), n, [&](std::size_t row, std::size_t i) {
    std::ptrdiff_t offset[3];
    axes.offsets(row, offset);
    const bool first = to_float(c[offset[0] + axes.along(0, i)]) != 0.0F;
    y[row * n + i] = first ? a[offset[1] + axes.along(1, i)] : b[offset[2] + axes.along(2, i)];
  });
}

template <typename T, int width>
__global__ void fill_kernel(std::size_t n, float value, T* y) {
  float v[width];
#pragma unroll
  for (int k = 0; k < width; ++k) v[k] = value;
  for_each(n / width, [&](std::size_t i) { store(v, y + i * width); });
  for_each(n % width, [&](std::size_t i) { y[n - n % width + i] = from_float<T>(value); });
}

template <typename From, typename To, int width>
__global__ void convert_kernel(std::size_t n, const From* x, To* y) {
  for_each(n / width, [&](std::size_t i) {
    float v[width];
    load(x + i * width, v);
    store(v, y + i * width);
  });
  for_each(n % width, [&](std::size_t i) {
    const std::size_t at = n - n % width + i;
    y[at] = from_float<To>(to_float(x[at]));
  });
}

}  // namespace mdprune::cuda
