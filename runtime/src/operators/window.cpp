#include "window.h"

#include <algorithm>

namespace mdprune {
namespace {

bool is_pointwise(const cpu::Window& window) {
  for (int axis = 0; axis < 3; ++axis) {
    if (window.kernel[axis] != 1 || window.stride[axis] != 1 || window.pad[axis] != 0 ||
        window.input[axis] != window.output[axis]) {
      return false;
    }
  }
  return true;
}

// Sizes of the two tensors along the window's axes; spatial 0 has only rows.
WindowShape read_sizes(const Tensor& x, const Tensor& y, std::size_t spatial) {
  require(x.rank >= 1 && x.rank == y.rank, "the ranks of input and output do not match");
  require(spatial == 0 || x.rank == spatial + 2, "the rank is not that of the window");
  WindowShape shape{};
  shape.batch = spatial == 0 ? 1 : x.sizes[0];
  shape.channels = x.last();
  shape.filters = y.last();
  require(spatial == 0 || y.sizes[0] == shape.batch, "input and output differ in the batch");
  std::fill_n(shape.window.input, 3, 1);
  std::fill_n(shape.window.output, 3, 1);
  for (std::size_t axis = 0; axis < spatial; ++axis) {
    shape.window.input[3 - spatial + axis] = x.sizes[1 + axis];
    shape.window.output[3 - spatial + axis] = y.sizes[1 + axis];
  }
  if (spatial == 0) {
    require(std::equal(x.sizes, x.sizes + x.rank - 1, y.sizes), "the rows do not match");
    shape.window.input[2] = shape.window.output[2] = x.elements / shape.channels;
  }
  return shape;
}

}  // namespace

std::size_t WindowShape::taps() const {
  return product({window.kernel[0], window.kernel[1], window.kernel[2]});
}

WindowShape read_window(Words& words, const Tensor& x, const Tensor& y) {
  const std::size_t spatial = words.below(4);
  WindowShape shape = read_sizes(x, y, spatial);
  cpu::Window& window = shape.window;
  for (std::size_t& size : window.kernel) size = words.positive();
  for (std::size_t& size : window.stride) size = words.positive();
  for (std::size_t& size : window.dilation) size = words.positive();
  for (std::size_t& size : window.pad) size = words.next();
  for (std::size_t axis = 0; axis < 3 - spatial; ++axis) {
    require(window.kernel[axis] == 1 && window.stride[axis] == 1 && window.dilation[axis] == 1 &&
                window.pad[axis] == 0,
            "an axis that is not there has a window");
  }
  if (is_pointwise(window)) {
    const std::size_t pixels = x.elements / shape.channels;
    shape.batch = 1;
    window.input[0] = window.input[1] = window.output[0] = window.output[1] = 1;
    window.input[2] = window.output[2] = pixels;
  }
  return shape;
}

void check_window(const cpu::Window& window, const std::size_t (&positions)[3]) {
  constexpr std::size_t kMost = std::size_t{1} << 31;
  if (is_pointwise(window)) return;  // its one long axis may hold more pixels
  for (int axis = 0; axis < 3; ++axis) {
    for (const std::size_t size : {window.input[axis], window.output[axis], window.kernel[axis],
                                   window.stride[axis], window.dilation[axis], window.pad[axis]}) {
      require(size < kMost, "a window is too large");
    }
    const std::size_t last = (positions[axis] - 1) * window.stride[axis] +
                             (window.kernel[axis] - 1) * window.dilation[axis];
    require(last < kMost && window.pad[axis] < kMost, "a window is too large");
  }
}

}  // namespace mdprune
