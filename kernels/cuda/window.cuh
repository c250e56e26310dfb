// Which position of x an output pixel sees through a tap of the window.

#pragma once

#include <cuda_runtime.h>

#include "kernels.h"

namespace mdprune::cuda {

struct WindowArguments {
  int input[3], output[3], kernel[3], stride[3], dilation[3], pad[3];
  int taps;
  bool transposed;
};

inline WindowArguments window_arguments(const Window& window, bool transposed) {
  WindowArguments made{};
  for (int axis = 0; axis < 3; ++axis) {
    made.input[axis] = static_cast<int>(window.input[axis]);
    made.output[axis] = static_cast<int>(window.output[axis]);
    made.kernel[axis] = static_cast<int>(window.kernel[axis]);
    made.stride[axis] = static_cast<int>(window.stride[axis]);
    made.dilation[axis] = static_cast<int>(window.dilation[axis]);
    made.pad[axis] = static_cast<int>(window.pad[axis]);
  }
  made.taps = made.kernel[0] * made.kernel[1] * made.kernel[2];
  made.transposed = transposed;
  return made;
}

struct Tap {
  int z, y, x;

  __device__ __forceinline__ void begin(const WindowArguments& w, int tap) {
    x = tap % w.kernel[2];
    y = tap / w.kernel[2] % w.kernel[1];
    z = tap / w.kernel[2] / w.kernel[1];
  }
  __device__ __forceinline__ void next(const WindowArguments& w) {
    if (++x < w.kernel[2]) return;
    x = 0;
    if (++y < w.kernel[1]) return;
    y = 0;
    ++z;
  }
};

// The part of a pixel's positions in x that is the same for all taps: z, y, x and the first
// position of its image; -1: no pixel. Of a window with one tap: the position itself, or -1.
using Pixel = int4;

__device__ __forceinline__ int along_axis(const WindowArguments& w, int axis, int at, int tap) {
  if (!w.transposed) {
    const int position = at + tap * w.dilation[axis];
    return static_cast<unsigned>(position) < static_cast<unsigned>(w.input[axis]) ? position : -1;
  }
  const int steps = at - tap * w.dilation[axis];
  if (steps < 0 || steps % w.stride[axis] != 0) return -1;
  const int position = steps / w.stride[axis];
  return position < w.input[axis] ? position : -1;
}

__device__ __forceinline__ int locate_tap(const WindowArguments& w, const Pixel& pixel,
                                          const Tap& tap) {
  const int z = along_axis(w, 0, pixel.x, tap.z);
  const int y = along_axis(w, 1, pixel.y, tap.y);
  const int x = along_axis(w, 2, pixel.z, tap.x);
  if ((z | y | x) < 0) return -1;
  return pixel.w + (z * w.input[1] + y) * w.input[2] + x;
}

// The position in x, -1 if that is outside or behind the last tap.
__device__ __forceinline__ int locate(const WindowArguments& w, const Pixel& pixel,
                                      const Tap& tap) {
  if (pixel.w < 0 || tap.z >= w.kernel[0]) return -1;
  return w.taps == 1 ? pixel.w : locate_tap(w, pixel, tap);
}

__device__ __forceinline__ Pixel make_pixel(const WindowArguments& w, int index, int pixels) {
  if (index >= pixels) return make_int4(0, 0, 0, -1);
  const int x = index % w.output[2];
  const int y = index / w.output[2] % w.output[1];
  const int rest = index / w.output[2] / w.output[1];
  const int image = rest / w.output[0];
  const int z = rest - image * w.output[0];
  const auto first = [&](int axis, int at) {
    return w.transposed ? at + w.pad[axis] : at * w.stride[axis] - w.pad[axis];
  };
  Pixel pixel = make_int4(first(0, z), first(1, y), first(2, x),
                          image * w.input[0] * w.input[1] * w.input[2]);
  if (w.taps == 1) pixel.w = locate_tap(w, pixel, Tap{0, 0, 0});
  return pixel;
}

}  // namespace mdprune::cuda
