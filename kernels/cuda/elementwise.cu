// Launchers of the element-wise kernels.

#include "elementwise.cuh"
#include "grid.h"
#include "strides.h"

namespace mdprune::cuda {
namespace {

template <int operands>
bool wide_strides(const Axes<operands>& axes, std::size_t width) {
  const int last = axes.rank - 1;
  bool wide = axes.size[last] % width == 0;
  for (int k = 0; k < operands; ++k) {
    wide = wide && (axes.stride[k][last] == 0 || axes.stride[k][last] == 1);
    for (int axis = 0; axis < last; ++axis) {
      wide = wide && (axes.stride[k][last] == 0 ||
                      axes.stride[k][axis] % static_cast<std::ptrdiff_t>(width) == 0);
    }
  }
  return wide;
}

template <typename From, typename To>
int convert_elements(const Convert& op, const Launch& at) {
  const auto* x = static_cast<const From*>(op.x);
  auto* y = static_cast<To*>(op.y);
  constexpr int kWidth = 4;
  const bool wide = aligned({x, y});
  const Grid grid = over(divide_up(op.n, wide ? kWidth : 1), at);
  return wide ? launch(convert_kernel<From, To, kWidth>, grid, at, op.n, x, y)
              : launch(convert_kernel<From, To, 1>, grid, at, op.n, x, y);
}

}  // namespace

int unary(const Unary& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    return with_width<T>(aligned({op.x, op.y}), [&](auto width) {
      return launch(unary_kernel<T, width>, over(divide_up(op.n, width), at), at, op.n,
                    static_cast<const T*>(op.x), static_cast<T*>(op.y), op.activation);
    });
  });
}

int affine(const Affine& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    const bool wide =
        op.n % kWide<T> == 0 && aligned({op.y}) && (op.index != nullptr || aligned({op.x}));
    return with_width<T>(wide, [&](auto width) {
      return launch(affine_kernel<T, width>, over(op.rows, op.n / width, at), at, op.rows, op.n_in,
                    op.n, static_cast<const T*>(op.x), static_cast<T*>(op.y), op.index, op.scale,
                    op.shift, op.activation);
    });
  });
}

int binary(const Binary& op, const Launch& at) {
  const auto axes = axes_of<2>(op.rank, op.size, {op.a_stride, op.b_stride});
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = wide_strides(axes, kWide<T>) && aligned({op.a, op.b, op.y});
    return with_width<T>(wide, [&](auto width) {
      return launch(binary_kernel<T, width>, over(axes.rows(), axes.columns() / width, at), at,
                    op.kind, axes, static_cast<const T*>(op.a), static_cast<const T*>(op.b),
                    static_cast<T*>(op.y), op.activation);
    });
  });
}

int select(const Select& op, const Launch& at) {
  const auto axes = axes_of<3>(op.rank, op.size, {op.c_stride, op.a_stride, op.b_stride});
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(select_kernel<T>, over(axes.rows(), axes.columns(), at), at, axes,
                  static_cast<const T*>(op.c), static_cast<const T*>(op.a),
                  static_cast<const T*>(op.b), static_cast<T*>(op.y));
  });
}

int fill(const Fill& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    return with_width<T>(aligned({op.y}), [&](auto width) {
      return launch(fill_kernel<T, width>, over(divide_up(op.n, width), at), at, op.n, op.value,
                    static_cast<T*>(op.y));
    });
  });
}

int convert(const Convert& op, const Launch& at) {
  return with_type(op.from, [&](auto from) {
    return with_type(
        op.to, [&](auto to) { return convert_elements<decltype(from), decltype(to)>(op, at); });
  });
}

}  // namespace mdprune::cuda
