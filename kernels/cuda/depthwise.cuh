// Depthwise convolution: a thread has `count` neighbouring filters of kAlong output pixels that are
// neighbours along x, so that a weight is loaded once for all of them. The input comes through the
// cache: neighbouring threads read neighbouring channels.

#pragma once

#include "epilogue.cuh"
#include "window.cuh"

namespace mdprune::cuda {

constexpr int kAlong = 4;
constexpr int kDepthwiseThreads = 128;

struct DepthwiseArguments {
  WindowArguments window;
  Epilogue epilogue;
  long long threads;
  int in_channels;
  int filters;
  int multiplier;
  const void* weight;
  const void* x;
};

// With `count` > 1 a filter reads the channel of its own number, and all chunks are aligned.
template <typename T, int count>
__global__ void __launch_bounds__(kDepthwiseThreads) depthwise_kernel(const DepthwiseArguments a) {
  const long long thread =
      static_cast<long long>(blockIdx.x) * kDepthwiseThreads + static_cast<int>(threadIdx.x);
  if (thread >= a.threads) return;
  const WindowArguments& w = a.window;
  const int across = a.filters / count;
  const int along = (w.output[2] + kAlong - 1) / kAlong;
  const int filter = static_cast<int>(thread % across) * count;
  const int first_x = static_cast<int>(thread / across % along) * kAlong;
  const long long line = thread / across / along;  // of all images
  const int y = static_cast<int>(line % w.output[1]);
  const int z = static_cast<int>(line / w.output[1] % w.output[0]);
  const long long image = line / w.output[1] / w.output[0];
  const int channel = count > 1 ? filter : filter / a.multiplier;
  const T* const x = static_cast<const T*>(a.x) + channel;
  const T* weight = static_cast<const T*>(a.weight) + filter;

  float sums[kAlong][count] = {};
  for (int tz = 0; tz < w.kernel[0]; ++tz) {
    const int at_z = along_axis(w, 0, z * w.stride[0] - w.pad[0], tz);
    for (int ty = 0; ty < w.kernel[1]; ++ty) {
      const int at_y = along_axis(w, 1, y * w.stride[1] - w.pad[1], ty);
      const long long row = ((image * w.input[0] + at_z) * w.input[1] + at_y) * w.input[2];
      for (int tx = 0; tx < w.kernel[2]; ++tx, weight += a.filters) {
        if ((at_z | at_y) < 0) continue;
        float by[count];
        load_values(by, weight, count, count > 1);
#pragma unroll
        for (int i = 0; i < kAlong; ++i) {
          const int at_x = along_axis(w, 2, (first_x + i) * w.stride[2] - w.pad[2], tx);
          if (at_x < 0) continue;
          float values[count];
          load_values(values, x + (row + at_x) * a.in_channels, count, count > 1);
#pragma unroll
          for (int j = 0; j < count; ++j) sums[i][j] = fmaf(values[j], by[j], sums[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kAlong; ++i) {
    if (first_x + i >= w.output[2]) continue;
    finish<T>(a.epilogue, sums[i], line * w.output[2] + first_x + i, filter, count);
  }
}

}  // namespace mdprune::cuda
