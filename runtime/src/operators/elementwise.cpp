// Affine, unary, binary, select, fill.

#include <algorithm>
#include <vector>

#include "strides.h"

namespace mdprune {
namespace {

std::vector<std::size_t> shape_of(const Tensor& tensor) {
  return {tensor.sizes, tensor.sizes + tensor.rank};
}

}  // namespace

std::unique_ptr<const Operator> read_affine(Words& words) {
  auto made = std::make_unique<Affine>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  const Tensor* index = words.optional_integers();
  made->channels_in = x.last();
  made->channels = y.last();
  made->rows = x.elements / x.last();
  const Tensor* scale = words.optional_input(made->channels);
  const Tensor* shift = words.optional_input(made->channels);
  made->activation = words.activation();
  require(y.elements / y.last() == made->rows, "the rows do not match");
  if (index != nullptr) {
    made->index = checked_index(*index, made->channels, made->channels_in);
  } else {
    require(made->channels == made->channels_in, "the channels do not match");
  }
  check_overlap(y, &x, index == nullptr ? Overlap::kSame : Overlap::kNone);
  check_overlap(y, scale);
  check_overlap(y, shift);
  made->x = Address(x);
  made->y = Address(y);
  made->scale = Address(scale);
  made->shift = Address(shift);
  return made;
}

std::unique_ptr<const Operator> read_unary(Words& words) {
  auto made = std::make_unique<Unary>();
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  made->activation = words.activation();
  made->elements = y.elements;
  require(x.elements == y.elements, "the sizes do not match");
  check_overlap(y, &x, Overlap::kSame);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_binary(Words& words) {
  auto made = std::make_unique<Binary>();
  const Tensor& a = words.input();
  const Tensor& b = words.input();
  const Tensor& y = words.output();
  made->kind = words.below(cpu::kBinaryKinds);
  made->activation = words.activation();
  made->size = broadcast(a, b);
  require(made->size == shape_of(y), "the output has not the shape of the operands");
  made->a_stride = broadcast_strides(a, made->size);
  made->b_stride = broadcast_strides(b, made->size);
  merge_axes<std::size_t>(made->size, {&made->a_stride, &made->b_stride});
  check_overlap(y, &a, Overlap::kSame);
  check_overlap(y, &b, Overlap::kSame);
  made->a = Address(a);
  made->b = Address(b);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_select(Words& words) {
  auto made = std::make_unique<Select>();
  const Tensor& c = words.input();
  const Tensor& a = words.input();
  const Tensor& b = words.input();
  const Tensor& y = words.output();
  made->size = shape_of(y);
  made->c_stride = broadcast_strides(c, made->size);
  made->a_stride = broadcast_strides(a, made->size);
  made->b_stride = broadcast_strides(b, made->size);
  merge_axes<std::size_t>(made->size, {&made->c_stride, &made->a_stride, &made->b_stride});
  for (const Tensor* input : {&c, &a, &b}) check_overlap(y, input);
  made->c = Address(c);
  made->a = Address(a);
  made->b = Address(b);
  made->y = Address(y);
  return made;
}

std::unique_ptr<const Operator> read_fill(Words& words) {
  auto made = std::make_unique<Fill>();
  const Tensor& y = words.output();
  made->value = words.next_float();
  made->elements = y.elements;
  made->y = Address(y);
  return made;
}

}  // namespace mdprune
