// Which elements a thread takes, and how it loads and stores neighbours: as float, whatever they
// are stored as.

#pragma once

#include "types.cuh"

namespace mdprune::cuda {

template <int width, typename T>
__device__ __forceinline__ void load(const T* from, float (&to)[width]) {
  const auto pack = *reinterpret_cast<const Pack<T, width>*>(from);
#pragma unroll
  for (int i = 0; i < width; ++i) to[i] = to_float(pack.values[i]);
}

template <int width, typename T>
__device__ __forceinline__ void store(const float (&from)[width], T* to) {
  Pack<T, width> pack;
#pragma unroll
  for (int i = 0; i < width; ++i) pack.values[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, width>*>(to) = pack;
}

// f(i) for every i below n, by the threads of a grid of one axis.
template <typename F>
__device__ __forceinline__ void for_each(std::size_t n, const F& f) {
  const std::size_t threads = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += threads) {
    f(i);
  }
}

// f(row, column) for every cell of a plane, by a grid whose x axis runs along the columns.
template <typename F>
__device__ __forceinline__ void for_each_cell(std::size_t rows, std::size_t columns, const F& f) {
  const std::size_t column_threads = std::size_t{gridDim.x} * blockDim.x;
  const std::size_t row_threads = std::size_t{gridDim.y} * blockDim.y;
  const std::size_t first_column = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::size_t first_row = std::size_t{blockIdx.y} * blockDim.y + threadIdx.y;
  for (std::size_t column = first_column; column < columns; column += column_threads) {
    for (std::size_t row = first_row; row < rows; row += row_threads) f(row, column);
  }
}

}  // namespace mdprune::cuda
