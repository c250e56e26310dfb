// Reductions over the middle of three axes [outer, n, inner]: reduce, softmax, normalize.
//
// A block of 256 threads has its x axis along inner, y along n and z along outer; sizes along x and
// y are powers of two. Each thread folds every blockDim.y-th element, then the threads of a column
// fold theirs as a tree. Everything has its fixed place: results are the same in every run.

#pragma once

#include "element.cuh"

namespace mdprune::cuda {

constexpr int kReduceThreads = 256;

// The operations that fold elements. Beside float the state of one may be a struct.
// Unlike fmaxf and fminf these give NaN where there is one.
struct Maximum {
  using State = float;
  __device__ static float start() { return -HUGE_VALF; }
  __device__ static float map(std::uint32_t, float x) { return x; }
  __device__ static float combine(float a, float b) { return a > b || a != a ? a : b; }
  __device__ static float finish(std::uint32_t, float total, float) { return total; }
};

struct Minimum {
  using State = float;
  __device__ static float start() { return HUGE_VALF; }
  __device__ static float map(std::uint32_t, float x) { return x; }
  __device__ static float combine(float a, float b) { return a < b || a != a ? a : b; }
  __device__ static float finish(std::uint32_t, float total, float) { return total; }
};

struct Product {
  using State = float;
  __device__ static float start() { return 1.0F; }
  __device__ static float map(std::uint32_t, float x) { return x; }
  __device__ static float combine(float a, float b) { return a * b; }
  __device__ static float finish(std::uint32_t, float total, float) { return total; }
};

// All kinds that add something up.
struct Sum {
  using State = float;
  __device__ static float start() { return 0.0F; }
  __device__ static float map(std::uint32_t kind, float x) {
    switch (kind) {
      case kL1: return fabsf(x);
      case kL2:
      case kSumOfSquares: return x * x;
      default: return x;
    }
  }
  __device__ static float combine(float a, float b) { return a + b; }
  __device__ static float finish(std::uint32_t kind, float total, float n) {
    switch (kind) {
      case kMean: return total / n;
      case kL2: return sqrtf(total);
      case kLogOfSum: return logf(total);
      default: return total;
    }
  }
};

// The largest element and the sum of exp(x - largest), in one pass.
struct LogSumExp {
  struct State {
    float largest, sum;
  };
  // What is subtracted: 0 where the largest is infinite.
  __device__ static float finite_or_zero(float x) { return x - x == 0.0F ? x : 0.0F; }
  __device__ static float rescale(State s, float shift) {
    return s.sum == 0.0F ? 0.0F : s.sum * expf(finite_or_zero(s.largest) - shift);
  }
  __device__ static State start() { return {-HUGE_VALF, 0.0F}; }
  __device__ static State map(std::uint32_t, float x) { return {x, expf(x - finite_or_zero(x))}; }
  __device__ static State combine(State a, State b) {
    const float largest = Maximum::combine(a.largest, b.largest);
    const float shift = finite_or_zero(largest);
    return {largest, rescale(a, shift) + rescale(b, shift)};
  }
  __device__ static float finish(std::uint32_t, State total, float) {
    return finite_or_zero(total.largest) + logf(total.sum);
  }
};

// Folds element(i), a state, for begin <= i < end; all threads of a column get the result.
// `shared` has room for the state of every thread. Called by all threads of a block.
template <typename Operation, typename F>
__device__ typename Operation::State fold(std::size_t begin, std::size_t end, const F& element,
                                          typename Operation::State* shared) {
  using State = typename Operation::State;
  const std::size_t step = blockDim.y;
  State total = Operation::start();
  std::size_t i = begin + threadIdx.y;
  // Four at a time: their loads do not wait for each other, and sums round less.
  for (; i + 3 * step < end; i += 4 * step) {
    const State first = element(i);
    const State second = element(i + step);
    const State third = element(i + 2 * step);
    const State fourth = element(i + 3 * step);
    total = Operation::combine(total, Operation::combine(Operation::combine(first, second),
                                                         Operation::combine(third, fourth)));
  }
  for (; i < end; i += step) total = Operation::combine(total, element(i));
  const unsigned column = threadIdx.z * blockDim.y * blockDim.x + threadIdx.x;
  const unsigned at = column + threadIdx.y * blockDim.x;
  shared[at] = total;
  __syncthreads();
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    if (threadIdx.y < half) {
      shared[at] = Operation::combine(shared[at], shared[at + half * blockDim.x]);
    }
    __syncthreads();
  }
  const State result = shared[column];
  __syncthreads();  // the next fold writes there
  return result;
}

// f(o, i, n) for the columns of [outer, n, inner], by all threads of a block together: for those
// that have no column n is 0.
template <typename F>
__device__ void for_each_column(std::size_t outer, std::size_t n, std::size_t inner, const F& f) {
  const std::size_t o_step = std::size_t{gridDim.y} * blockDim.z;
  const std::size_t i_step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t o0 = std::size_t{blockIdx.y} * blockDim.z; o0 < outer; o0 += o_step) {
    for (std::size_t i0 = std::size_t{blockIdx.x} * blockDim.x; i0 < inner; i0 += i_step) {
      const std::size_t o = o0 + threadIdx.z;
      const std::size_t i = i0 + threadIdx.x;
      f(o, i, o < outer && i < inner ? n : 0);
    }
  }
}

// Part blockIdx.z of gridDim.z of the elements. The whole goes to y; parts go to `partial`,
// [parts, outer, inner].
template <typename T, typename Operation>
__global__ void reduce_kernel(std::uint32_t kind, std::size_t outer, std::size_t n,
                              std::size_t inner, const T* x, T* y,
                              typename Operation::State* partial) {
  __shared__ typename Operation::State shared[kReduceThreads];
  for_each_column(outer, n, inner, [&](std::size_t o, std::size_t i, std::size_t elements) {
    const T* column = x + o * n * inner + i;
    const auto element = [&](std::size_t j) {
      return Operation::map(kind, to_float(column[j * inner]));
    };
    const auto total = fold<Operation>(elements * blockIdx.z / gridDim.z,
                                       elements * (blockIdx.z + 1) / gridDim.z, element, shared);
    if (elements == 0 || threadIdx.y != 0) return;
    if (gridDim.z == 1) {
      y[o * inner + i] = from_float<T>(Operation::finish(kind, total, static_cast<float>(n)));
    } else {
      partial[(blockIdx.z * outer + o) * inner + i] = total;
    }
  });
}

// y from the partial folds, in order.
template <typename T, typename Operation>
__global__ void reduce_parts_kernel(std::uint32_t kind, std::size_t parts, std::size_t columns,
                                    std::size_t n, const typename Operation::State* partial, T* y) {
  for_each(columns, [&](std::size_t i) {
    auto total = partial[i];
    for (std::size_t part = 1; part < parts; ++part) {
      total = Operation::combine(total, partial[part * columns + i]);
    }
    y[i] = from_float<T>(Operation::finish(kind, total, static_cast<float>(n)));
  });
}

// exp(x - largest) / sum, or x - largest - log(sum). y may be x.
template <typename T>
__global__ void softmax_kernel(bool log, std::size_t outer, std::size_t n, std::size_t inner,
                               const T* x, T* y) {
  __shared__ float shared[kReduceThreads];
  for_each_column(outer, n, inner, [&](std::size_t o, std::size_t i, std::size_t elements) {
    const std::size_t first = o * n * inner + i;
    const auto value = [&](std::size_t j) { return to_float(x[first + j * inner]); };
    const float largest = fold<Maximum>(0, elements, value, shared);
    const auto exponential = [&](std::size_t j) { return expf(value(j) - largest); };
    const float sum = fold<Sum>(0, elements, exponential, shared);
    const float factor = 1.0F / sum;
    const float subtract = logf(sum);
    for (std::size_t j = threadIdx.y; j < elements; j += blockDim.y) {
      const float v = log ? value(j) - largest - subtract : exponential(j) * factor;
      y[first + j * inner] = from_float<T>(v);
    }
  });
}

// (x - mean) / sqrt(variance + epsilon), the variance taken about the mean. y may be x.
template <typename T>
__global__ void normalize_kernel(float epsilon, std::size_t outer, std::size_t n, std::size_t inner,
                                 const T* x, T* y) {
  __shared__ float shared[kReduceThreads];
  for_each_column(outer, n, inner, [&](std::size_t o, std::size_t i, std::size_t elements) {
    const std::size_t first = o * n * inner + i;
    const auto count = static_cast<float>(n);
    const auto value = [&](std::size_t j) { return to_float(x[first + j * inner]); };
    const float mean = fold<Sum>(0, elements, value, shared) / count;
    const auto square = [&](std::size_t j) { return (value(j) - mean) * (value(j) - mean); };
    const float variance = fold<Sum>(0, elements, square, shared) / count;
    const float factor = 1.0F / sqrtf(variance + epsilon);
    for (std::size_t j = threadIdx.y; j < elements; j += blockDim.y) {
      y[first + j * inner] = from_float<T>((value(j) - mean) * factor);
    }
  });
}

}  // namespace mdprune::cuda
