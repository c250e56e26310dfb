// Depthwise convolution and pooling.

#include "window.h"

namespace mdprune {

std::unique_ptr<const Operator> read_depthwise(Words& words) {
  auto made = std::make_unique<Depthwise>();
  cpu::Depthwise& d = made->constant;
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  const std::size_t filters = y.last();
  const Tensor* scale = words.optional_input(filters);
  const Tensor* shift = words.optional_input(filters);
  const Tensor* residual = words.optional_input(y.elements);
  d.activation = words.activation();
  const Tensor& weight = words.input();
  const WindowShape shape = read_window(words, x, y);
  check_window(shape.window, shape.window.output);
  require(weight.elements == product({shape.taps(), filters}), "the weight is not (taps, filters)");
  require(filters % shape.channels == 0, "the filters are no multiple of the input's channels");
  d.batch = shape.batch;
  d.window = shape.window;
  d.in_channels = shape.channels;
  d.filters = filters;
  for (const Tensor* input : {&x, scale, shift, &weight}) check_overlap(y, input);
  check_overlap(y, residual, Overlap::kSame);
  made->x = Address(x);
  made->y = Address(y);
  made->weight = Address(weight);
  made->scale = Address(scale);
  made->shift = Address(shift);
  made->residual = Address(residual);
  return made;
}

std::unique_ptr<const Operator> read_pool(Words& words) {
  auto made = std::make_unique<Pool>();
  cpu::Pool& d = made->constant;
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  d.kind = words.below(cpu::kPoolKinds);
  const WindowShape shape = read_window(words, x, y);
  check_window(shape.window, shape.window.output);
  require(shape.filters == shape.channels, "a pool changes the channels");
  // Overflow-free divisor; sums run over the part inside the input only.
  product({shape.window.kernel[0], shape.window.kernel[1], shape.window.kernel[2]});
  d.batch = shape.batch;
  d.window = shape.window;
  d.channels = shape.channels;
  check_overlap(y, &x);
  made->x = Address(x);
  made->y = Address(y);
  return made;
}

}  // namespace mdprune
