// Matrix products of two activations, with batches.

#include <vector>

#include "strides.h"

namespace mdprune {

std::unique_ptr<const Operator> read_matmul(Words& words) {
  auto made = std::make_unique<MatMul>();
  const Tensor& a = words.input();
  const Tensor& b = words.input();
  const Tensor& y = words.output();
  require(a.rank >= 2 && b.rank >= 2 && y.rank >= 2, "a matrix has less than two axes");
  made->m = a.sizes[a.rank - 2];
  made->k = a.sizes[a.rank - 1];
  made->n = b.sizes[b.rank - 1];
  require(b.sizes[b.rank - 2] == made->k, "the matrices do not fit");
  made->batch = broadcast(a, b, 2);
  std::vector<std::size_t> shape = made->batch;
  shape.push_back(made->m);
  shape.push_back(made->n);
  require(shape == std::vector<std::size_t>(y.sizes, y.sizes + y.rank),
          "the output has not the shape of the product");
  made->a_stride = broadcast_strides(a, made->batch, 2);
  made->b_stride = broadcast_strides(b, made->batch, 2);
  merge_axes<std::size_t>(made->batch, {&made->a_stride, &made->b_stride});
  // One matrix on the right: the left ones are rows of one.
  if (made->batch.size() == 1 && made->b_stride[0] == 0 && made->a_stride[0] != 0) {
    made->m *= made->batch[0];
    made->batch[0] = 1;
  }
  check_overlap(y, &a);
  check_overlap(y, &b);
  made->a = Address(a);
  made->b = Address(b);
  made->y = Address(y);
  return made;
}

}  // namespace mdprune
