// Depthwise convolution and pooling: every channel by itself, lanes over channels.
//
//   depthwise: y[p, f] = A(scale[f] * sum over taps t of x[p * stride + t * dilation - pad, f / m]
//   *
//              w[t, f] + shift[f] + residual[p, f])
//
// Taps outside the input are skipped by range, so no copy of the input with a border is made.

#pragma once

#include <math.h>

#include "activation.inl"
#include "parallel.inl"

namespace mdprune::cpu::MDPRUNE_ISA {

// Taps [first, last) of an axis that lie inside the input, seen from an output position.
struct TapRange {
  std::size_t first;
  std::size_t last;
  std::ptrdiff_t start;  // position of tap 0

  TapRange(const Window& w, int axis, std::size_t output)
      : first(0),
        last(0),
        start(static_cast<std::ptrdiff_t>(output * w.stride[axis]) -
              static_cast<std::ptrdiff_t>(w.pad[axis])) {
    const auto size = static_cast<std::ptrdiff_t>(w.input[axis]);
    const auto dilation = static_cast<std::ptrdiff_t>(w.dilation[axis]);
    if (start < 0) first = static_cast<std::size_t>((-start + dilation - 1) / dilation);
    if (start < size) last = static_cast<std::size_t>((size - start + dilation - 1) / dilation);
    if (last > w.kernel[axis]) last = w.kernel[axis];
    if (first > last) first = last;
  }
  std::size_t size() const { return last - first; }
  std::size_t at(const Window& w, int axis, std::size_t tap) const {
    return static_cast<std::size_t>(start + static_cast<std::ptrdiff_t>(tap * w.dilation[axis]));
  }
};

// Output row `row` of image `image`: calls f(tap, input row) for its taps in the two outer axes;
// the input row is counted in rows of the last axis, the tap in taps of the last axis.
template <typename F>
inline void for_each_row_tap(const Window& w, std::size_t image, const TapRange& z,
                             const TapRange& y, const F& f) {
  for (std::size_t tz = z.first; tz < z.last; ++tz) {
    for (std::size_t ty = y.first; ty < y.last; ++ty) {
      const std::size_t plane = image * w.input[0] + z.at(w, 0, tz);
      f((tz * w.kernel[1] + ty) * w.kernel[2], plane * w.input[1] + y.at(w, 1, ty));
    }
  }
}

template <typename Activate>
inline Vec depthwise_epilogue(const Depthwise& d, Vec sum, std::size_t f, std::size_t lanes,
                              std::size_t position, const Activate& activate) {
  const Vec scale = d.scale != nullptr ? Vec::load(d.scale + f, lanes) : Vec::all(1.0F);
  const Vec shift = d.shift != nullptr ? Vec::load(d.shift + f, lanes) : Vec::zero();
  Vec v = fma(sum, scale, shift);
  if (d.residual != nullptr) v = v + Vec::load(d.residual + position, lanes);
  return activate(v);
}

// Channels of x that the filters [f, f + lanes) read.
inline Vec load_channels(const float* x, std::size_t f, std::size_t lanes, std::size_t multiplier) {
  if (multiplier == 1) return Vec::load(x + f, lanes);
  float values[Vec::kLanes] = {};
  for (std::size_t i = 0; i < lanes; ++i) values[i] = x[(f + i) / multiplier];
  return Vec::load(values);
}

constexpr std::size_t kTilePixels = 4;  // share the loads of a weight

// One row of outputs, image-major. `row` counts rows of the last axis.
template <typename Activate>
void depthwise_row(const Depthwise& d, std::size_t row, const Activate& activate) {
  const Window& w = d.window;
  const std::size_t width = w.output[2];
  const std::size_t multiplier = d.filters / d.in_channels;
  const TapRange z(w, 0, row / w.output[1] % w.output[0]);
  const TapRange y(w, 1, row % w.output[1]);
  const std::size_t image = row / w.output[1] / w.output[0];
  const std::size_t step = w.stride[2] * d.in_channels;
  for (std::size_t ox = 0; ox < width;) {
    const TapRange x(w, 2, ox);
    const bool tile = ox + kTilePixels <= width && x.size() == w.kernel[2] &&
                      TapRange(w, 2, ox + kTilePixels - 1).size() == w.kernel[2];
    const std::size_t pixels = tile ? kTilePixels : 1;
    for (std::size_t f = 0; f < d.filters; f += Vec::kLanes) {
      const std::size_t lanes = d.filters - f < Vec::kLanes ? d.filters - f : Vec::kLanes;
      Vec sums[kTilePixels];
      for (Vec& sum : sums) sum = Vec::zero();
      for_each_row_tap(w, image, z, y, [&](std::size_t tap, std::size_t input_row) {
        for (std::size_t tx = x.first; tx < x.last; ++tx) {
          const float* from = d.x + (input_row * w.input[2] + x.at(w, 2, tx)) * d.in_channels;
          const float* weight = d.weight + (tap + tx) * d.filters + f;
          if (tile && lanes == Vec::kLanes && multiplier == 1) {
            const Vec value = Vec::load(weight);
            for (std::size_t p = 0; p < kTilePixels; ++p) {
              sums[p] = fma(Vec::load(from + p * step + f), value, sums[p]);
            }
          } else {
            const Vec value = Vec::load(weight, lanes);
            for (std::size_t p = 0; p < pixels; ++p) {
              sums[p] = fma(load_channels(from + p * step, f, lanes, multiplier), value, sums[p]);
            }
          }
        }
      });
      for (std::size_t p = 0; p < pixels; ++p) {
        const std::size_t position = (row * width + ox + p) * d.filters + f;
        depthwise_epilogue(d, sums[p], f, lanes, position, activate).store(d.y + position, lanes);
      }
    }
    ox += pixels;
  }
}

inline void depthwise(const Depthwise& d, const Parallel& parallel) {
  const Window& w = d.window;
  const std::size_t rows = d.batch * w.output[0] * w.output[1];
  const std::size_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  with_activation(d.activation, [&](const auto& activate) {
    for_ranges(parallel, rows, w.output[2] * d.filters * taps,
               [&](std::size_t begin, std::size_t end) {
                 for (std::size_t row = begin; row < end; ++row) depthwise_row(d, row, activate);
               });
  });
}

inline void pool_row(const Pool& d, std::size_t row) {
  const Window& w = d.window;
  const TapRange z(w, 0, row / w.output[1] % w.output[0]);
  const TapRange y(w, 1, row % w.output[1]);
  const std::size_t image = row / w.output[1] / w.output[0];
  const bool maximum = d.kind == kMaximumPool;
  for (std::size_t ox = 0; ox < w.output[2]; ++ox) {
    const TapRange x(w, 2, ox);
    std::size_t divisor = w.kernel[0] * w.kernel[1] * w.kernel[2];
    if (d.kind == kMeanInside) divisor = z.size() * y.size() * x.size();
    const Vec factor = Vec::all(1.0F / static_cast<float>(divisor == 0 ? 1 : divisor));
    for (std::size_t c = 0; c < d.channels; c += Vec::kLanes) {
      const std::size_t lanes = d.channels - c < Vec::kLanes ? d.channels - c : Vec::kLanes;
      Vec result = maximum ? Vec::all(-HUGE_VALF) : Vec::zero();
      for_each_row_tap(w, image, z, y, [&](std::size_t, std::size_t input_row) {
        // One partial sum per row keeps rounding small in global pools.
        Vec sum = Vec::zero();
        for (std::size_t tx = x.first; tx < x.last; ++tx) {
          const std::size_t pixel = input_row * w.input[2] + x.at(w, 2, tx);
          const Vec value = Vec::load(d.x + pixel * d.channels + c, lanes);
          if (maximum) {
            result = max(result, value);
          } else {
            sum = sum + value;
          }
        }
        if (!maximum) result = result + sum;
      });
      if (!maximum) result = result * factor;
      result.store(d.y + (row * w.output[2] + ox) * d.channels + c, lanes);
    }
  }
}

inline void pool(const Pool& d, const Parallel& parallel) {
  const Window& w = d.window;
  const std::size_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  for_ranges(parallel, d.batch * w.output[0] * w.output[1], w.output[2] * d.channels * taps,
             [&](std::size_t begin, std::size_t end) {
               for (std::size_t row = begin; row < end; ++row) pool_row(d, row);
             });
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
