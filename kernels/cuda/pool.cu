// Launcher of pooling.

#include "grid.h"
#include "pool.cuh"

namespace mdprune::cuda {
namespace {

// One window that is the whole input.
bool is_global(const Window& w) {
  for (int axis = 0; axis < 3; ++axis) {
    if (w.output[axis] != 1 || w.kernel[axis] != w.input[axis] || w.pad[axis] != 0 ||
        (w.dilation[axis] != 1 && w.kernel[axis] != 1)) {
      return false;
    }
  }
  return true;
}

}  // namespace

int pool(const Pool& op, const Launch& at) {
  const Window& w = op.window;
  if (is_global(w)) {  // few results of many elements each: threads share them
    const std::size_t elements = w.input[0] * w.input[1] * w.input[2];
    return reduce({op.type, op.kind == kMaximumPool ? std::uint32_t{kMax} : std::uint32_t{kMean},
                   op.batch, elements, op.channels, op.x, op.y},
                  at);
  }
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = op.channels % kWide<T> == 0 && aligned({op.x, op.y});
    const std::size_t rows = op.batch * w.output[0] * w.output[1] * w.output[2];
    return with_width<T>(wide, [&](auto width) {
      return launch(pool_kernel<T, width>, over(rows, op.channels / width, at), at, op.batch, w,
                    op.channels, op.kind, static_cast<const T*>(op.x), static_cast<T*>(op.y));
    });
  });
}

}  // namespace mdprune::cuda
