// The sums of one thread block: tiles of pixels x filters in registers, multiplied a step at a time
// from shared memory; by tensor cores for halves, by fused multiply-add for floats.

#pragma once

#include "convolution_load.cuh"

namespace mdprune::cuda {

// The padding of a row of sums in shared memory keeps the stores of a fragment from meeting.
constexpr int kSumPadding = 8;

// Pixels, filters, and those of one warp.
template <int pixels, int filters, int warp_pixels, int warp_filters, int stages>
struct MmaTile {
  static constexpr int kPixels = pixels;
  static constexpr int kFilters = filters;
  static constexpr int kStages = stages;
  static constexpr int kWarpsAlong = pixels / warp_pixels;  // the pixels
  static constexpr int kThreads = kWarpsAlong * (filters / warp_filters) * 32;
  static constexpr int kWarpPixels = warp_pixels;
  static constexpr int kWarpFilters = warp_filters;
};

template <class Tile>
class MmaSums {
 public:
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& row : sums_) {
#pragma unroll
      for (auto& fragment : row) {
#pragma unroll
        for (float& sum : fragment) sum = 0.0F;
      }
    }
  }

  __device__ __forceinline__ void multiply_step(const uint4* x, const uint4* w) {
    // The lane's rows; 16 of either further on the chunks of a row are exchanged the same.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint4* const x_rows[2] = {x + x_place(pixel() + lane % 16, lane / 16),
                                    x + x_place(pixel() + lane % 16, 2 + lane / 16)};
    const uint4* w_rows[kColumns / 2];
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) {
      w_rows[j] = w + w_place<kRowChunks>(lane % 16, filter() / 8 + j * 2 + lane / 16);
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      unsigned left[kRows][4];
      unsigned right[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_matrices(left[i], x_rows[k] + i * 16 * 4);
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) {
        load_matrices_transposed(right[j], w_rows[j] + k * 16 * kRowChunks);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          multiply(sums_[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  // Those of pixels [first, first + count) to rows of filters + kSumPadding.
  __device__ __forceinline__ void store(float* out, int first, int count) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (pixel() < first || pixel() >= first + count) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = pixel() - first + i * 16 + half * 8 + lane / 4;
          const int column = filter() + j * 8 + lane % 4 * 2;
          *reinterpret_cast<float2*>(out + row * (Tile::kFilters + kSumPadding) + column) =
              make_float2(sums_[i][j][half * 2], sums_[i][j][half * 2 + 1]);
        }
      }
    }
  }

 private:
  static constexpr int kRows = Tile::kWarpPixels / 16;
  static constexpr int kColumns = Tile::kWarpFilters / 8;
  static constexpr int kRowChunks = Tile::kFilters / 8;

  __device__ __forceinline__ static int pixel() {
    return static_cast<int>(threadIdx.x) / 32 % Tile::kWarpsAlong * Tile::kWarpPixels;
  }
  __device__ __forceinline__ static int filter() {
    return static_cast<int>(threadIdx.x) / 32 / Tile::kWarpsAlong * Tile::kWarpFilters;
  }

  float sums_[kRows][kColumns][4];
};

// A thread has `thread_pixels` pixels, as far apart as there are threads along them, and 4 filters.
template <int pixels, int filters, int thread_pixels, int stages>
struct FmaTile {
  static constexpr int kPixels = pixels;
  static constexpr int kFilters = filters;
  static constexpr int kStages = stages;
  static constexpr int kThreadPixels = thread_pixels;
  static constexpr int kThreadsAcross = filters / 4;
  static constexpr int kThreads = kThreadsAcross * (pixels / thread_pixels);
};

template <class Tile>
class FmaSums {
 public:
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& row : sums_) {
#pragma unroll
      for (float& sum : row) sum = 0.0F;
    }
  }

  __device__ __forceinline__ void multiply_step(const uint4* x, const uint4* w) {
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      float4 left[Tile::kThreadPixels];
#pragma unroll
      for (int i = 0; i < Tile::kThreadPixels; ++i) {
        left[i] = *reinterpret_cast<const float4*>(x + x_place(pixel(i), chunk));
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float4 right = *reinterpret_cast<const float4*>(
            w + w_place<Tile::kFilters / 4>(chunk * 4 + k, column()));
#pragma unroll
        for (int i = 0; i < Tile::kThreadPixels; ++i) {
          const float value = k == 0   ? left[i].x
                              : k == 1 ? left[i].y
                              : k == 2 ? left[i].z
                                       : left[i].w;
          sums_[i][0] = fmaf(value, right.x, sums_[i][0]);
          sums_[i][1] = fmaf(value, right.y, sums_[i][1]);
          sums_[i][2] = fmaf(value, right.z, sums_[i][2]);
          sums_[i][3] = fmaf(value, right.w, sums_[i][3]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* out, int first, int count) const {
#pragma unroll
    for (int i = 0; i < Tile::kThreadPixels; ++i) {
      if (pixel(i) < first || pixel(i) >= first + count) continue;
      float* const row = out + (pixel(i) - first) * (Tile::kFilters + kSumPadding);
      *reinterpret_cast<float4*>(row + column() * 4) =
          make_float4(sums_[i][0], sums_[i][1], sums_[i][2], sums_[i][3]);
    }
  }

 private:
  __device__ __forceinline__ static int column() {
    return static_cast<int>(threadIdx.x) % Tile::kThreadsAcross;
  }
  __device__ __forceinline__ static int pixel(int i) {
    return static_cast<int>(threadIdx.x) / Tile::kThreadsAcross +
           i * (Tile::kPixels / Tile::kThreadPixels);
  }

  float sums_[Tile::kThreadPixels][4];
};

}  // namespace mdprune::cuda
