// Index vectors of up to 16 axes and the elements of several operands that belong to them.

#pragma once

#include "types.cuh"

namespace mdprune::cuda {

constexpr int kAxes = 16;

template <int operands>
struct Axes {
  int rank;  // at least 1
  std::size_t size[kAxes];
  std::ptrdiff_t stride[operands][kAxes];

  __host__ __device__ std::size_t columns() const { return size[rank - 1]; }

  __host__ __device__ std::size_t rows() const {
    std::size_t rows = 1;
    for (int axis = 0; axis + 1 < rank; ++axis) rows *= size[axis];
    return rows;
  }

  // Where the `row`-th vector of all axes but the last begins in each operand.
  __device__ __forceinline__ void offsets(std::size_t row,
                                          std::ptrdiff_t (&offset)[operands]) const {
    for (int k = 0; k < operands; ++k) offset[k] = 0;
    for (int axis = rank - 2; axis >= 0; --axis) {
      const std::size_t rest = axis == 0 ? 0 : row / size[axis];
      const auto j = static_cast<std::ptrdiff_t>(row - rest * size[axis]);
      for (int k = 0; k < operands; ++k) offset[k] += j * stride[k][axis];
      row = rest;
    }
  }

  // Offset of a column in an operand from the beginning of the row.
  __device__ __forceinline__ std::ptrdiff_t along(int operand, std::size_t column) const {
    return static_cast<std::ptrdiff_t>(column) * stride[operand][rank - 1];
  }
};

}  // namespace mdprune::cuda
