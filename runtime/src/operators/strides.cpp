#include "strides.h"

#include <algorithm>

namespace mdprune {

std::vector<std::size_t> broadcast(const Tensor& a, const Tensor& b, std::size_t kept) {
  const std::size_t rank = std::max(a.rank, b.rank) - kept;
  std::vector<std::size_t> shape(rank, 1);
  for (const Tensor* tensor : {&a, &b}) {
    const std::size_t axes = tensor->rank - kept;
    for (std::size_t axis = 0; axis < axes; ++axis) {
      std::size_t& size = shape[rank - axes + axis];
      const std::size_t own = tensor->sizes[axis];
      require(own == size || own == 1 || size == 1, "the shapes do not broadcast");
      if (own != 1) size = own;
    }
  }
  return shape;
}

std::vector<std::size_t> broadcast_strides(const Tensor& tensor,
                                           const std::vector<std::size_t>& shape,
                                           std::size_t kept) {
  const std::size_t axes = tensor.rank - kept;
  require(axes <= shape.size(), "the shapes do not broadcast");
  std::vector<std::size_t> strides(shape.size(), 0);
  std::size_t step = 1;
  for (std::size_t axis = tensor.rank; axis-- > axes;) step *= tensor.sizes[axis];
  for (std::size_t axis = axes; axis-- > 0;) {
    const std::size_t place = shape.size() - axes + axis;
    require(tensor.sizes[axis] == shape[place] || tensor.sizes[axis] == 1,
            "the shapes do not broadcast");
    if (tensor.sizes[axis] != 1) strides[place] = step;
    step *= tensor.sizes[axis];
  }
  return strides;
}

}  // namespace mdprune
