// The main loop of the products: steps of both operands are loaded kStages - 1 ahead into a ring of
// stages in shared memory while the oldest one is multiplied.

#pragma once

#include <type_traits>

#include "convolution_tile.cuh"

namespace mdprune::cuda {

template <typename T, class Tile>
using SumsOf = std::conditional_t<sizeof(T) == 2, MmaSums<Tile>, FmaSums<Tile>>;

// How the ring lies in shared memory.
template <typename T, class Tile>
struct Stages {
  static constexpr int kRowChunks = Tile::kFilters / kChunk<T>;
  static constexpr int kChunks = Tile::kPixels * 4 + kDepth<T> * kRowChunks;
  static constexpr int kBytes = 16 * kChunks * Tile::kStages;
  static constexpr int kSumRow = Tile::kFilters + kSumPadding;
  // The sums go through the stages' memory, in two halves where it is too small for all.
  static constexpr int kSumPixels =
      Tile::kPixels * kSumRow * 4 <= kBytes ? Tile::kPixels : Tile::kPixels / 2;
  static_assert(kSumPixels * kSumRow * 4 <= kBytes, "the sums do not fit");
};

// `s` is what the loaders read from.
template <typename T, class Tile, class Source, class LoadX, class LoadW>
__device__ __forceinline__ void run_steps(const Source& s, uint4* stages, int steps, LoadX& load_x,
                                          LoadW& load_w, SumsOf<T, Tile>& sums) {
  const auto x_stage = [=](int i) { return stages + i % Tile::kStages * Stages<T, Tile>::kChunks; };
  const auto w_stage = [=](int i) { return x_stage(i) + Tile::kPixels * 4; };
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < steps) {
      load_x.fetch(s, x_stage(i));
      load_w.fetch(s, w_stage(i));
      load_x.store(x_stage(i));
      load_w.store(w_stage(i));
    }
    commit_copies();
  }
  sums.clear();
  for (int i = 0; i < steps; ++i) {
    wait_copies<Tile::kStages - 2>();
    __syncthreads();  // the step is here, and nobody reads the one before it any more
    const int next = i + Tile::kStages - 1;
    if (next < steps) {
      load_x.fetch(s, x_stage(next));
      load_w.fetch(s, w_stage(next));
    }
    commit_copies();
    sums.multiply_step(x_stage(i), w_stage(i));
    if (next < steps) {
      load_x.store(x_stage(next));
      load_w.store(w_stage(next));
    }
  }
  wait_copies<0>();
}

// Brings the sums of pixels [first, first + kSumPixels) into the stages' memory.
template <typename T, class Tile>
__device__ __forceinline__ void stage_sums(uint4* stages, const SumsOf<T, Tile>& sums, int first) {
  __syncthreads();
  sums.store(reinterpret_cast<float*>(stages), first, Stages<T, Tile>::kSumPixels);
  __syncthreads();
}

template <typename T, class Tile>
__device__ __forceinline__ const float4* staged_sums(const uint4* stages, int pixel, int filter) {
  return reinterpret_cast<const float4*>(reinterpret_cast<const float*>(stages) +
                                         pixel * Stages<T, Tile>::kSumRow + filter);
}

// Calls f(pixel, filter) for every chunk of filters below `pixels`; each belongs to one thread.
template <typename T, class Tile, typename F>
__device__ __forceinline__ void for_each_chunk(int pixels, F f) {
  constexpr int kAcross = Tile::kFilters / kChunk<T>;
  for (int i = static_cast<int>(threadIdx.x); i < pixels * kAcross; i += Tile::kThreads) {
    f(i / kAcross, i % kAcross * kChunk<T>);
  }
}

template <typename T>
__device__ __forceinline__ void add_chunk(float (&values)[kChunk<T>], int i, const float4& four) {
  values[i * 4] += four.x;
  values[i * 4 + 1] += four.y;
  values[i * 4 + 2] += four.z;
  values[i * 4 + 3] += four.w;
}

}  // namespace mdprune::cuda
