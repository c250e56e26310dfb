// Windows of convolutions and pools.

#pragma once

#include <cstddef>

#include "words.h"

namespace mdprune {

// x is (batch, spatial..., channels), y is (batch, spatial..., filters).
struct WindowShape {
  std::size_t batch;
  std::size_t channels;
  std::size_t filters;
  cpu::Window window;

  std::size_t taps() const;
};

// Reads `spatial, kernel x3, stride x3, dilation x3, pad x3`. With `spatial` 0, and wherever every
// window is one pixel, all pixels of all images become one long row of one image.
WindowShape read_window(Words& words, const Tensor& x, const Tensor& y);

// Positions stay far from where their arithmetic could overflow. `positions` are the axis that the
// window moves over: the output's, or the input's of a transposed convolution.
void check_window(const cpu::Window& window, const std::size_t (&positions)[3]);

}  // namespace mdprune
