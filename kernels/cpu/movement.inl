// Data movement: move (any strided copy), gather, interpolate.

#pragma once

#include <string.h>

#include "elementwise.inl"
#include "parallel.inl"

namespace mdprune::cpu::MDPRUNE_ISA {

// The last two axes. Tiles keep the cache lines of both sides in use when an axis is strided.
inline void move_plane(const std::size_t* size, const std::ptrdiff_t* x_stride,
                       const std::ptrdiff_t* y_stride, const float* x, float* y) {
  constexpr std::size_t kTile = 32;
  if (x_stride[1] == 1 && y_stride[1] == 1) {
    for (std::size_t i = 0; i < size[0]; ++i) {
      const auto row = static_cast<std::ptrdiff_t>(i);
      memcpy(y + row * y_stride[0], x + row * x_stride[0], size[1] * sizeof(float));
    }
    return;
  }
  for (std::size_t i0 = 0; i0 < size[0]; i0 += kTile) {
    const std::size_t i1 = size[0] - i0 < kTile ? size[0] : i0 + kTile;
    for (std::size_t j0 = 0; j0 < size[1]; j0 += kTile) {
      const std::size_t j1 = size[1] - j0 < kTile ? size[1] : j0 + kTile;
      for (std::size_t i = i0; i < i1; ++i) {
        const float* from = x + static_cast<std::ptrdiff_t>(i) * x_stride[0];
        float* to = y + static_cast<std::ptrdiff_t>(i) * y_stride[0];
        for (std::size_t j = j0; j < j1; ++j) {
          const auto column = static_cast<std::ptrdiff_t>(j);
          to[column * y_stride[1]] = from[column * x_stride[1]];
        }
      }
    }
  }
}

inline void move(std::size_t rank, const std::size_t* size, const std::ptrdiff_t* x_stride,
                 const std::ptrdiff_t* y_stride, const float* x, float* y,
                 const Parallel& parallel) {
  const std::size_t one[2] = {1, rank == 1 ? size[0] : 1};
  const std::ptrdiff_t from[2] = {0, rank == 1 ? x_stride[0] : 1};
  const std::ptrdiff_t to[2] = {0, rank == 1 ? y_stride[0] : 1};
  if (rank < 2) return move_plane(one, from, to, x, y);
  const std::size_t outer = rank - 2;
  std::size_t planes = 1;
  for (std::size_t axis = 0; axis < outer; ++axis) planes *= size[axis];
  // A single plane is split along its first axis.
  const std::size_t pieces = planes == 1 ? size[outer] : planes;
  const std::size_t cost = size[rank - 1] * (planes == 1 ? 1 : size[outer]);
  for_ranges(parallel, pieces, cost, [&](std::size_t begin, std::size_t end) {
    if (planes == 1) {
      const std::size_t part[2] = {end - begin, size[rank - 1]};
      const auto first = static_cast<std::ptrdiff_t>(begin);
      move_plane(part, x_stride + outer, y_stride + outer, x + first * x_stride[outer],
                 y + first * y_stride[outer]);
      return;
    }
    for (std::size_t plane = begin; plane < end; ++plane) {
      std::ptrdiff_t x_offset = 0;
      std::ptrdiff_t y_offset = 0;
      std::size_t rest = plane;
      for (std::size_t axis = outer; axis-- > 0; rest /= size[axis]) {
        const auto j = static_cast<std::ptrdiff_t>(rest % size[axis]);
        x_offset += j * x_stride[axis];
        y_offset += j * y_stride[axis];
      }
      move_plane(size + outer, x_stride + outer, y_stride + outer, x + x_offset, y + y_offset);
    }
  });
}

inline void gather(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                   const std::int32_t* index, const float* x, float* y, const Parallel& parallel) {
  for_ranges(parallel, outer * count, inner, [&](std::size_t begin, std::size_t end) {
    for (std::size_t k = begin; k < end; ++k) {
      const std::size_t row = k / count * n + static_cast<std::size_t>(index[k % count]);
      if (inner == 1) {
        y[k] = x[row];
      } else {
        memcpy(y + k * inner, x + row * inner, inner * sizeof(float));
      }
    }
  });
}

inline void interpolate(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                        std::size_t taps, const std::int32_t* index, const float* weight,
                        const float* x, float* y, const Parallel& parallel) {
  for_ranges(parallel, outer * count, inner * taps, [&](std::size_t begin, std::size_t end) {
    for (std::size_t k = begin; k < end; ++k) {
      const float* from = x + k / count * n * inner;
      const std::int32_t* rows = index + k % count * taps;
      const float* weights = weight + k % count * taps;
      for_each_vector(0, inner, [&](std::size_t i, std::size_t lanes) {
        Vec sum = Vec::zero();
        for (std::size_t t = 0; t < taps; ++t) {
          const float* at = from + static_cast<std::size_t>(rows[t]) * inner + i;
          sum = fma(Vec::all(weights[t]), Vec::load(at, lanes), sum);
        }
        sum.store(y + k * inner + i, lanes);
      });
    }
  });
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
