// y (m, n) = a (m, k) b (k, n), neither constant: attention and its like. The tiles and the main
// loop are those of the convolution, rows are its pixels and columns its filters.

#pragma once

#include "epilogue.cuh"
#include "pipeline.cuh"

namespace mdprune::cuda {

struct MatMulArguments {
  int m, k, n;
  const void* a;
  const void* b;
  void* y;
  const std::int64_t* a_offset;
  const std::int64_t* b_offset;
  bool vectors;  // rows of y are aligned
};

// A tile of a row-major matrix, [first row, + rows) x [first column, + columns of chunks), in
// shared memory at place(row, chunk); rows and columns behind the last are zero.
template <typename T, int threads, int rows, int row_chunks, bool runs>
class LoadMatrix {
 public:
  __device__ __forceinline__ void begin(const T* data, int height, int width) {
    data_ = data;
    height_ = height;
    width_ = width;
  }

  template <typename Place>
  __device__ __forceinline__ void fetch_at(uint4* stage, int row, int column, Place place) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * threads;
      const int y = row + at / kAcross;
      const int x = column + at % kAcross * (runs ? kChunk<T> : 1);
      const bool inside = y < height_ && x < width_;
      const T* const from = data_ + (inside ? static_cast<long long>(y) * width_ + x : 0);
      if constexpr (runs) {
        fetch_chunk(stage + place(at / kAcross, at % kAcross), from, inside, waiting_, i);
      } else {
        values_[i] = inside ? *from : from_float<T>(0.0F);
      }
    }
  }

  template <typename Place>
  __device__ __forceinline__ void store_at(uint4* stage, Place place) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * threads;
      if constexpr (!runs) {
        const int x = at % kAcross;
        T* const chunk = reinterpret_cast<T*>(stage + place(at / kAcross, x / kChunk<T>));
        chunk[x % kChunk<T>] = values_[i];
      } else if constexpr (!kAsyncCopies) {
        stage[place(at / kAcross, at % kAcross)] = waiting_.chunks[i];
      }
    }
  }

 private:
  static constexpr int kAcross = runs ? row_chunks : row_chunks * kChunk<T>;
  static constexpr int kLoads = rows * kAcross / threads;

  const T* data_;
  int height_;
  int width_;
  T values_[runs ? 1 : kLoads];
  Waiting<runs ? kLoads : 1> waiting_;
};

template <typename T, class Tile, bool runs>
struct LoadA {
  LoadMatrix<T, Tile::kThreads, Tile::kPixels, 4, runs> load;
  int row;
  int column;

  __device__ __forceinline__ void fetch(const MatMulArguments&, uint4* stage) {
    load.fetch_at(stage, row, column, x_place);
    column += kDepth<T>;
  }
  __device__ __forceinline__ void store(uint4* stage) { load.store_at(stage, x_place); }
};

template <typename T, class Tile, bool runs>
struct LoadB {
  static constexpr int kChunks = Tile::kFilters / kChunk<T>;
  LoadMatrix<T, Tile::kThreads, kDepth<T>, kChunks, runs> load;
  int row;
  int column;

  __device__ __forceinline__ void fetch(const MatMulArguments&, uint4* stage) {
    load.fetch_at(stage, row, column, w_place<kChunks>);
    row += kDepth<T>;
  }
  __device__ __forceinline__ void store(uint4* stage) { load.store_at(stage, w_place<kChunks>); }
};

template <typename T, class Tile, bool a_runs, bool b_runs>
__global__ void __launch_bounds__(Tile::kThreads, 1) matmul_kernel(const MatMulArguments a) {
  MDPRUNE_DYNAMIC_SHARED(memory);
  auto* const stages = reinterpret_cast<uint4*>(memory);
  const int first_row = static_cast<int>(blockIdx.x) * Tile::kPixels;
  const int first_column = static_cast<int>(blockIdx.y) * Tile::kFilters;
  const long long batch = blockIdx.z;
  const long long a_offset = a.a_offset != nullptr ? a.a_offset[batch] : batch * a.m * a.k;
  const long long b_offset = a.b_offset != nullptr ? a.b_offset[batch] : batch * a.k * a.n;

  LoadA<T, Tile, a_runs> load_a;
  LoadB<T, Tile, b_runs> load_b;
  load_a.load.begin(static_cast<const T*>(a.a) + a_offset, a.m, a.k);
  load_a.row = first_row;
  load_a.column = 0;
  load_b.load.begin(static_cast<const T*>(a.b) + b_offset, a.k, a.n);
  load_b.row = 0;
  load_b.column = first_column;
  SumsOf<T, Tile> sums;
  run_steps<T, Tile>(a, stages, (a.k + kDepth<T> - 1) / kDepth<T>, load_a, load_b, sums);

  static_assert(Stages<T, Tile>::kSumPixels == Tile::kPixels, "all at once");
  stage_sums<T, Tile>(stages, sums, 0);
  T* const y = static_cast<T*>(a.y) + batch * a.m * a.n;
  for_each_chunk<T, Tile>(Tile::kPixels, [&](int row, int column) {
    const int valid = a.n - first_column - column;
    if (first_row + row >= a.m || valid <= 0) return;
    float values[kChunk<T>] = {};
#pragma unroll
    for (int i = 0; i < kChunk<T> / 4; ++i) {
      add_chunk<T>(values, i, staged_sums<T, Tile>(stages, row, column)[i]);
    }
    store_values(y + static_cast<long long>(first_row + row) * a.n + first_column + column, values,
                 valid, a.vectors && valid >= kChunk<T>);
  });
}

}  // namespace mdprune::cuda
