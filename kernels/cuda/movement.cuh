// Move, gather, interpolate.
//
// Moves and gathers do not look at values: a Word is an element or, where sizes and addresses allow
// it, 16 bytes of neighbours, and all sizes, strides and offsets count words.

#pragma once

#include "axes.cuh"
#include "element.cuh"

namespace mdprune::cuda {

template <typename Word>
__global__ void move_kernel(Axes<2> axes, const Word* x, Word* y) {
  for_each_cell(axes.rows(), axes.columns(), [&](std::size_t row, std::size_t column) {
    std::ptrdiff_t offset[2];
    axes.offsets(row, offset);
    y[offset[1] + axes.along(1, column)] = x[offset[0] + axes.along(0, column)];
  });
}

constexpr int kMoveTile = 32;
constexpr int kMoveTileRows = 8;  // of a tile that are moved at once: the block is 32 x 8 threads

// A move whose x is contiguous along the last axis but one, and whose y is along the last: `planes`
// is what the axes before these two make up. Tiles go through shared memory, so that both sides
// are touched in whole lines.
template <typename Word>
__global__ void move_transposed_kernel(Axes<2> axes, std::size_t planes, const Word* x, Word* y) {
  __shared__ Word tile[kMoveTile][kMoveTile + 1];  // a column more: no two rows share all banks
  const int last = axes.rank - 1;
  const std::size_t rows = axes.size[last - 1];
  const std::size_t columns = axes.size[last];
  const std::size_t tiles_across = (columns + kMoveTile - 1) / kMoveTile;
  const std::size_t tiles = (rows + kMoveTile - 1) / kMoveTile * tiles_across;
  for (std::size_t job = blockIdx.x; job < planes * tiles; job += gridDim.x) {
    std::ptrdiff_t offset[2];
    axes.offsets(job / tiles * rows, offset);  // the plane's row 0
    const std::size_t first_row = job % tiles / tiles_across * kMoveTile;
    const std::size_t first_column = job % tiles_across * kMoveTile;
    for (int j = threadIdx.y; j < kMoveTile; j += kMoveTileRows) {
      const std::size_t row = first_row + threadIdx.x;
      const std::size_t column = first_column + j;
      if (row >= rows || column >= columns) continue;
      tile[j][threadIdx.x] =
          x[offset[0] + static_cast<std::ptrdiff_t>(row) + axes.along(0, column)];
    }
    __syncthreads();
    for (int i = threadIdx.y; i < kMoveTile; i += kMoveTileRows) {
      const std::size_t row = first_row + i;
      const std::size_t column = first_column + threadIdx.x;
      if (row >= rows || column >= columns) continue;
      y[offset[1] + static_cast<std::ptrdiff_t>(row) * axes.stride[1][last - 1] +
        static_cast<std::ptrdiff_t>(column)] = tile[threadIdx.x][i];
    }
    __syncthreads();
  }
}

// x is [outer, n, inner], y is [outer, count, inner].
template <typename Word>
__global__ void gather_kernel(std::size_t outer, std::size_t n, std::size_t inner,
                              std::size_t count, const std::int32_t* index, const Word* x,
                              Word* y) {
  for_each_cell(outer * count, inner, [&](std::size_t row, std::size_t i) {
    const std::size_t o = row / count;
    y[row * inner + i] = x[(o * n + index[row - o * count]) * inner + i];
  });
}

// The same where inner is 1.
template <typename Word>
__global__ void gather_elements_kernel(std::size_t outer, std::size_t n, std::size_t count,
                                       const std::int32_t* index, const Word* x, Word* y) {
  for_each_cell(outer, count,
                [&](std::size_t o, std::size_t j) { y[o * count + j] = x[o * n + index[j]]; });
}

// Widths above 1 need inner % width == 0.
template <typename T, int width>
__global__ void interpolate_kernel(std::size_t outer, std::size_t n, std::size_t inner,
                                   std::size_t count, std::size_t taps, const std::int32_t* index,
                                   const float* weight, const T* x, T* y) {
  for_each_cell(outer * count, inner / width, [&](std::size_t row, std::size_t column) {
    const std::size_t o = row / count;
    const std::size_t first = (row - o * count) * taps;
    const T* from = x + o * n * inner + column * width;
    float sum[width] = {};
    for (std::size_t t = 0; t < taps; ++t) {
      float v[width];
      load(from + index[first + t] * inner, v);
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] = fmaf(weight[first + t], v[k], sum[k]);
    }
    store(sum, y + row * inner + column * width);
  });
}

}  // namespace mdprune::cuda
