// Pooling: every channel by itself, threads over channels. Taps outside the input are skipped.

#pragma once

#include "element.cuh"
#include "reduce.cuh"

namespace mdprune::cuda {

// The position in the input of a tap; false if it lies outside.
__device__ __forceinline__ bool tap_position(const Window& w, int axis, std::size_t output,
                                             std::size_t tap, std::size_t* position) {
  // Below 0 it wraps around and is too large.
  *position = output * w.stride[axis] + tap * w.dilation[axis] - w.pad[axis];
  return *position < w.input[axis];
}

// Widths above 1 need channels % width == 0.
template <typename T, int width>
__global__ void pool_kernel(std::size_t batch, Window w, std::size_t channels, std::uint32_t kind,
                            const T* x, T* y) {
  const std::size_t rows = batch * w.output[0] * w.output[1] * w.output[2];
  for_each_cell(rows, channels / width, [&](std::size_t row, std::size_t column) {
    std::size_t rest = row / w.output[2];
    const std::size_t out2 = row - rest * w.output[2];
    const std::size_t out1 = rest % w.output[1];
    rest /= w.output[1];
    const std::size_t out0 = rest % w.output[0];
    const std::size_t image = rest / w.output[0];
    float result[width];
#pragma unroll
    for (int k = 0; k < width; ++k) result[k] = kind == kMaximumPool ? -HUGE_VALF : 0.0F;
    std::size_t inside = 0;
    for (std::size_t t0 = 0; t0 < w.kernel[0]; ++t0) {
      std::size_t in0;
      if (!tap_position(w, 0, out0, t0, &in0)) continue;
      for (std::size_t t1 = 0; t1 < w.kernel[1]; ++t1) {
        std::size_t in1;
        if (!tap_position(w, 1, out1, t1, &in1)) continue;
        // A partial sum per row of the window keeps rounding small in large ones.
        float sum[width] = {};
        for (std::size_t t2 = 0; t2 < w.kernel[2]; ++t2) {
          std::size_t in2;
          if (!tap_position(w, 2, out2, t2, &in2)) continue;
          const std::size_t pixel =
              ((image * w.input[0] + in0) * w.input[1] + in1) * w.input[2] + in2;
          float v[width];
          load(x + pixel * channels + column * width, v);
#pragma unroll
          for (int k = 0; k < width; ++k) {
            if (kind == kMaximumPool) {
              result[k] = Maximum::combine(result[k], v[k]);
            } else {
              sum[k] += v[k];
            }
          }
          ++inside;
        }
        if (kind == kMaximumPool) continue;
#pragma unroll
        for (int k = 0; k < width; ++k) result[k] += sum[k];
      }
    }
    if (kind != kMaximumPool) {
      const std::size_t taps =
          kind == kMeanOfKernel ? w.kernel[0] * w.kernel[1] * w.kernel[2] : inside;
      const float factor = 1.0F / static_cast<float>(taps == 0 ? 1 : taps);
#pragma unroll
      for (int k = 0; k < width; ++k) result[k] *= factor;
    }
    store(result, y + row * channels + column * width);
  });
}

}  // namespace mdprune::cuda
