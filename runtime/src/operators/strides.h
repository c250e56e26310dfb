// Strided loops over several operands: NumPy broadcasting and copies.

#pragma once

#include <cstddef>
#include <vector>

#include "words.h"

namespace mdprune {

// The shape that a and b broadcast to, without their last `kept` axes.
std::vector<std::size_t> broadcast(const Tensor& a, const Tensor& b, std::size_t kept = 0);

// Strides of a tensor along the axes of a shape that it broadcasts to; 0 where it does not vary.
// Its last `kept` axes are not among them.
std::vector<std::size_t> broadcast_strides(const Tensor& tensor,
                                           const std::vector<std::size_t>& shape,
                                           std::size_t kept = 0);

// Merges neighbouring axes that all operands walk through as one, and drops axes of size 1; one
// axis is left at least.
template <typename Stride>
void merge_axes(std::vector<std::size_t>& size, std::vector<std::vector<Stride>*> operands) {
  std::size_t last = 0;  // axes [0, last) are done
  for (std::size_t axis = 0; axis < size.size(); ++axis) {
    if (size[axis] == 1) continue;
    bool merges = last > 0;
    for (const auto* stride : operands) {
      merges = merges && (*stride)[last - 1] == (*stride)[axis] * static_cast<Stride>(size[axis]);
    }
    const std::size_t to = merges ? last - 1 : last++;
    size[to] = merges ? size[to] * size[axis] : size[axis];
    for (auto* stride : operands) (*stride)[to] = (*stride)[axis];
  }
  if (last == 0) {
    size.assign(1, 1);
    for (auto* stride : operands) stride->assign(1, 0);
    return;
  }
  size.resize(last);
  for (auto* stride : operands) stride->resize(last);
}

}  // namespace mdprune
