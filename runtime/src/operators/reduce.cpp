// Operators over the middle of three axes: reduce, softmax, normalize.

#include "words.h"

namespace mdprune {
namespace {

Axes read_axes(Words& words, const Tensor& x) {
  const Axes axes{words.positive(), words.positive(), words.positive()};
  require(product({axes.outer, axes.n, axes.inner}) == x.elements,
          "the three axes do not make up the input");
  return axes;
}

}  // namespace

std::unique_ptr<const Operator> read_reduce(Words& words) {
  auto made = std::make_unique<Reduce>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  made->kind = words.below(cpu::kReduceKinds);
  made->axes = read_axes(words, x);
  require(y.elements == made->axes.outer * made->axes.inner, "the output's size is wrong");
  check_overlap(y, &x);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_softmax(Words& words) {
  auto made = std::make_unique<Softmax>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  made->log = words.below(2) == 1;
  made->axes = read_axes(words, x);
  require(y.elements == x.elements, "the sizes do not match");
  check_overlap(y, &x, Overlap::kSame);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_normalize(Words& words) {
  auto made = std::make_unique<Normalize>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  made->epsilon = words.next_float();
  made->axes = read_axes(words, x);
  require(y.elements == x.elements, "the sizes do not match");
  check_overlap(y, &x, Overlap::kSame);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

}  // namespace mdprune
