// Move, gather, interpolate.

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "strides.h"

namespace mdprune {
namespace {

// The first and last address that the strides reach lie in the tensor.
void check_addresses(std::ptrdiff_t offset, const std::vector<std::size_t>& size,
                     const std::vector<std::ptrdiff_t>& stride, const Tensor& tensor) {
  std::ptrdiff_t lowest = offset;
  std::ptrdiff_t highest = offset;
  for (std::size_t axis = 0; axis < size.size(); ++axis) {
    require(size[axis] <= std::size_t{1} << 31, "a move is too long");  // keeps products below 2^62
    const std::ptrdiff_t reach = static_cast<std::ptrdiff_t>(size[axis] - 1) * stride[axis];
    (reach < 0 ? lowest : highest) += reach;
    require(lowest >= 0 && static_cast<std::size_t>(highest) < tensor.elements,
            "a move leaves its tensor");
  }
  require(lowest >= 0 && static_cast<std::size_t>(highest) < tensor.elements,
          "a move leaves its tensor");
}

// Orders axes by the stride of y, and refuses strides that could write an element twice.
void order_axes(Move& move) {
  std::vector<std::size_t> order(move.size.size());
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](std::size_t axis) { return std::abs(move.y_stride[axis]); };
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
  Move ordered;
  for (const std::size_t axis : order) {
    if (move.size[axis] == 1) continue;
    ordered.size.push_back(move.size[axis]);
    ordered.x_stride.push_back(move.x_stride[axis]);
    ordered.y_stride.push_back(move.y_stride[axis]);
  }
  std::ptrdiff_t extent = 0;
  for (std::size_t axis = ordered.size.size(); axis-- > 0;) {
    const std::ptrdiff_t stride = std::abs(ordered.y_stride[axis]);
    require(stride > extent, "a move may write an element twice");
    extent += static_cast<std::ptrdiff_t>(ordered.size[axis] - 1) * stride;
  }
  move.size = std::move(ordered.size);
  move.x_stride = std::move(ordered.x_stride);
  move.y_stride = std::move(ordered.y_stride);
  merge_axes<std::ptrdiff_t>(move.size, {&move.x_stride, &move.y_stride});
}

// Brings the axis along which x is contiguous next to the last one: the kernel tiles over these
// two.
void pair_axes(Move& move) {
  const std::size_t rank = move.size.size();
  if (rank < 3 || move.x_stride[rank - 1] == 1) return;
  for (std::size_t axis = 0; axis + 2 < rank; ++axis) {
    if (move.x_stride[axis] != 1) continue;
    std::swap(move.size[axis], move.size[rank - 2]);
    std::swap(move.x_stride[axis], move.x_stride[rank - 2]);
    std::swap(move.y_stride[axis], move.y_stride[rank - 2]);
    return;
  }
}

}  // namespace

std::unique_ptr<const Operator> read_move(Words& words) {
  auto made = std::make_unique<Move>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  const std::uint32_t rank = words.next();
  require(rank <= 16, "a move has too many axes");
  made->x_offset = words.next_signed();
  made->y_offset = words.next_signed();
  for (std::uint32_t axis = 0; axis < rank; ++axis) made->size.push_back(words.positive());
  for (std::uint32_t axis = 0; axis < rank; ++axis) made->x_stride.push_back(words.next_signed());
  for (std::uint32_t axis = 0; axis < rank; ++axis) made->y_stride.push_back(words.next_signed());
  check_addresses(made->x_offset, made->size, made->x_stride, x);
  check_addresses(made->y_offset, made->size, made->y_stride, y);
  order_axes(*made);
  pair_axes(*made);
  check_overlap(y, &x);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_gather(Words& words) {
  auto made = std::make_unique<Gather>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  const Tensor& index = words.integers();
  made->outer = words.positive();
  made->n = words.positive();
  made->inner = words.positive();
  made->count = index.elements;
  require(product({made->outer, made->n, made->inner}) == x.elements,
          "the three axes do not make up the input");
  require(product({made->outer, made->count, made->inner}) == y.elements,
          "the output's size is wrong");
  made->index = checked_index(index, made->count, made->n);
  check_overlap(y, &x);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_interpolate(Words& words) {
  auto made = std::make_unique<Interpolate>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  const Tensor& index = words.integers();
  const Tensor& weight = words.input(index.elements);
  made->taps = words.positive();
  made->outer = words.positive();
  made->n = words.positive();
  made->inner = words.positive();
  require(index.elements % made->taps == 0, "the index list is not (positions, taps)");
  made->count = index.elements / made->taps;
  require(product({made->outer, made->n, made->inner}) == x.elements,
          "the three axes do not make up the input");
  require(product({made->outer, made->count, made->inner}) == y.elements,
          "the output's size is wrong");
  made->index = checked_index(index, index.elements, made->n);
  check_overlap(y, &x);
  check_overlap(y, &weight);
  made->x = Address(x);
  made->y = Address(y);
  made->weight = Address(weight);
  return made;
}

}  // namespace mdprune
