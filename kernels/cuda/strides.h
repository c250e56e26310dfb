// A launcher's sizes and strides, which are host memory, as a kernel takes them.

#pragma once

#include "axes.cuh"
#include "kernels.h"

namespace mdprune::cuda {

static_assert(kAxes >= kMaxAxes, "a kernel takes as many axes as a launcher");

template <int operands, typename Stride>
Axes<operands> axes_of(std::size_t rank, const std::size_t* size,
                       const Stride* const (&strides)[operands]) {
  Axes<operands> axes{};
  axes.rank = static_cast<int>(rank);
  for (std::size_t axis = 0; axis < rank; ++axis) {
    axes.size[axis] = size[axis];
    for (int k = 0; k < operands; ++k) {
      axes.stride[k][axis] = static_cast<std::ptrdiff_t>(strides[k][axis]);
    }
  }
  return axes;
}

}  // namespace mdprune::cuda
