// Matrix products of two activations, with batches.

#include <vector>

#include "strides.h"

namespace mdprune {
namespace {

class MatMul : public Operator {
 public:
  std::size_t m, k, n;
  std::vector<std::size_t> batch, a_stride, b_stride;
  Address a, b, y;

  void run(const Memory& memory, const cpu::Kernels& kernels,
           const cpu::Parallel& parallel) const override {
    const Call call{*this, kernels, a.read(memory), b.read(memory), y.write(memory)};
    std::size_t count = 1;
    for (const std::size_t size : batch) count *= size;
    // Many matrices: one worker takes a whole one.
    if (count >= parallel.workers && count > 1 && m * n * k > kSmall) {
      parallel.run(parallel.self, count, one_of_many, const_cast<Call*>(&call));
      return;
    }
    for (std::size_t i = 0; i < count; ++i) call.product(i, parallel);
  }

 private:
  static constexpr std::size_t kSmall = 4096;

  struct Call {
    const MatMul& operation;
    const cpu::Kernels& kernels;
    const float* a;
    const float* b;
    float* y;

    void product(std::size_t i, const cpu::Parallel& parallel) const {
      const MatMul& o = operation;
      std::size_t a_offset = 0;
      std::size_t b_offset = 0;
      std::size_t rest = i;
      for (std::size_t axis = o.batch.size(); axis-- > 0; rest /= o.batch[axis]) {
        a_offset += rest % o.batch[axis] * o.a_stride[axis];
        b_offset += rest % o.batch[axis] * o.b_stride[axis];
      }
      kernels.matmul(o.m, o.k, o.n, a + a_offset, b + b_offset, y + i * o.m * o.n, parallel);
    }
  };

  static void one_of_many(void* call, std::size_t index, std::size_t) {
    const cpu::Parallel alone{nullptr, nullptr, 1, nullptr};
    static_cast<const Call*>(call)->product(index, alone);
  }
};

}  // namespace

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
