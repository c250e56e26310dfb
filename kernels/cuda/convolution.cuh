// Convolution as a product of matrices that are never made: rows are output pixels, columns
// filters, and the reduction runs over taps and channels, gathered on the way into shared memory.
//
// A block has one tile of pixels x filters of one group and all of its reduction, or a part of it.
// Parts of a reduction go to the workspace; the block that finishes last adds them in their order,
// so that the sum does not depend on which one that was.

#pragma once

#include "epilogue.cuh"
#include "pipeline.cuh"

namespace mdprune::cuda {

struct ConvolutionArguments {
  ConvolutionSource source;
  Epilogue epilogue;
  int filters;       // per group
  int filter_tiles;  // per group
  int steps;         // of the whole reduction
  float* parts;      // tiles x splits x pixels x filters of a tile
  unsigned* counters;
};

// Whether this block is the last of a tile's `splits`; the counter is 0 before and after.
__device__ __forceinline__ bool is_last_part(unsigned* counter, int splits) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned last = static_cast<unsigned>(splits) - 1;
    is_last = atomicInc(counter, last) == last;
  }
  __syncthreads();
  __threadfence();
  return is_last;
}

template <typename T, class Tile, bool x_runs, bool w_runs>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    convolution_kernel(const ConvolutionArguments a) {
  MDPRUNE_DYNAMIC_SHARED(memory);
  auto* const stages = reinterpret_cast<uint4*>(memory);
  auto* const pixels = reinterpret_cast<Pixel*>(memory + Stages<T, Tile>::kBytes);

  // Blocks that read the same pixels are neighbours.
  const int tile = static_cast<int>(blockIdx.x);
  const int first_pixel = tile / a.filter_tiles * Tile::kPixels;
  const int first_filter = tile % a.filter_tiles * Tile::kFilters;
  const int split = static_cast<int>(blockIdx.y);
  const int splits = static_cast<int>(gridDim.y);
  const int group = static_cast<int>(blockIdx.z);
  const int begin = static_cast<int>(static_cast<long long>(a.steps) * split / splits);
  const int end = static_cast<int>(static_cast<long long>(a.steps) * (split + 1) / splits);

  for (int i = static_cast<int>(threadIdx.x); i < Tile::kPixels; i += Tile::kThreads) {
    pixels[i] = make_pixel(a.source.window, first_pixel + i, a.source.pixels);
  }
  __syncthreads();
  std::conditional_t<x_runs, XRuns<T, Tile>, XElements<T, Tile>> load_x;
  std::conditional_t<w_runs, WRuns<T, Tile>, WElements<T, Tile>> load_w;
  load_x.begin(a.source, pixels, group, begin);
  load_w.begin(a.source, group, first_filter, begin);
  SumsOf<T, Tile> sums;
  run_steps<T, Tile>(a.source, stages, end - begin, load_x, load_w, sums);

  constexpr int kTileSums = Tile::kPixels * Tile::kFilters;
  const int tile_of_all = group * static_cast<int>(gridDim.x) + tile;
  float* const parts = a.parts + static_cast<long long>(tile_of_all) * splits * kTileSums;
  const auto part = [=](int k, int pixel, int filter) {
    return reinterpret_cast<float4*>(parts + k * kTileSums + pixel * Tile::kFilters + filter);
  };
  constexpr int kSumPixels = Stages<T, Tile>::kSumPixels;
  if (splits > 1) {
    for (int first = 0; first < Tile::kPixels; first += kSumPixels) {
      stage_sums<T, Tile>(stages, sums, first);
      for_each_chunk<T, Tile>(kSumPixels, [&](int pixel, int filter) {
#pragma unroll
        for (int i = 0; i < kChunk<T> / 4; ++i) {
          part(split, first + pixel, filter)[i] = staged_sums<T, Tile>(stages, pixel, filter)[i];
        }
      });
    }
    if (!is_last_part(a.counters + tile_of_all, splits)) return;
  }
  for (int first = 0; first < Tile::kPixels; first += kSumPixels) {
    if (splits == 1) stage_sums<T, Tile>(stages, sums, first);
    for_each_chunk<T, Tile>(kSumPixels, [&](int pixel, int filter) {
      const int valid = a.filters - first_filter - filter;
      const int at = first_pixel + first + pixel;
      if (at >= a.source.pixels || valid <= 0) return;
      float values[kChunk<T>] = {};
      for (int k = 0; k < splits; ++k) {
#pragma unroll
        for (int i = 0; i < kChunk<T> / 4; ++i) {
          add_chunk<T>(values, i,
                       splits == 1 ? staged_sums<T, Tile>(stages, pixel, filter)[i]
                                   : __ldcg(part(k, first + pixel, filter) + i));
        }
      }
      finish<T>(a.epilogue, values, at, group * a.filters + first_filter + filter,
                valid < kChunk<T> ? valid : kChunk<T>);
    });
  }
}

}  // namespace mdprune::cuda
