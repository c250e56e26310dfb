// Launchers of move, gather and interpolate.

#include <type_traits>

#include "grid.h"
#include "movement.cuh"
#include "strides.h"

namespace mdprune::cuda {
namespace {

// A word of as many bytes, for what does not look at values.
template <std::size_t bytes>
using Word = std::conditional_t<bytes == 16, uint4,
                                std::conditional_t<bytes == 4, std::uint32_t, std::uint16_t>>;

template <typename F>
int with_word(Type type, bool wide, const F& f) {
  if (wide) return f(Word<16>{});
  return type == kHalf ? f(Word<2>{}) : f(Word<4>{});
}

// Counts words of `width` elements where that goes: both sides contiguous along the last axis and
// everything else a multiple.
bool widen_words(Axes<2>& axes, std::size_t width) {
  const int last = axes.rank - 1;
  if (axes.size[last] % width != 0 || axes.stride[0][last] != 1 || axes.stride[1][last] != 1) {
    return false;
  }
  const auto divisor = static_cast<std::ptrdiff_t>(width);
  for (int axis = 0; axis < last; ++axis) {
    if (axes.stride[0][axis] % divisor != 0 || axes.stride[1][axis] % divisor != 0) return false;
  }
  axes.size[last] /= width;
  for (int axis = 0; axis < last; ++axis) {
    axes.stride[0][axis] /= divisor;
    axes.stride[1][axis] /= divisor;
  }
  return true;
}

// Whether tiles are worth it: of a short axis caches hold whole lines until they are used up.
bool is_transposed(const Axes<2>& axes) {
  constexpr std::size_t kShort = kMoveTile / 2;
  const int last = axes.rank - 1;
  return last > 0 && axes.stride[1][last] == 1 && axes.stride[0][last - 1] == 1 &&
         axes.stride[0][last] != 1 && axes.size[last] >= kShort && axes.size[last - 1] >= kShort;
}

}  // namespace

int move(const Move& op, const Launch& at) {
  Axes<2> axes = axes_of<2>(op.rank, op.size, {op.x_stride, op.y_stride});
  const bool wide = aligned({op.x, op.y}) && widen_words(axes, 16 / size_of(op.type));
  return with_word(op.type, wide, [&](auto zero) {
    using T = decltype(zero);
    const auto* x = static_cast<const T*>(op.x);
    auto* y = static_cast<T*>(op.y);
    if constexpr (sizeof(T) < 16) {  // wide words lie one after the other on both sides
      if (is_transposed(axes)) {
        const std::size_t rows = axes.size[axes.rank - 2];
        const std::size_t planes = axes.rows() / rows;
        const std::size_t tiles = divide_up(rows, kMoveTile) * divide_up(axes.columns(), kMoveTile);
        const Grid grid = {clamp_blocks(planes * tiles, blocks_at_most(at)),
                           dim3(kMoveTile, kMoveTileRows)};
        return launch(move_transposed_kernel<T>, grid, at, axes, planes, x, y);
      }
    }
    return launch(move_kernel<T>, over(axes.rows(), axes.columns(), at), at, axes, x, y);
  });
}

int gather(const Gather& op, const Launch& at) {
  const std::size_t width = 16 / size_of(op.type);
  const bool wide = op.inner % width == 0 && aligned({op.x, op.y});
  return with_word(op.type, wide, [&](auto zero) {
    using T = decltype(zero);
    const auto* x = static_cast<const T*>(op.x);
    auto* y = static_cast<T*>(op.y);
    if constexpr (sizeof(T) < 16) {
      if (op.inner == 1) {
        return launch(gather_elements_kernel<T>, over(op.outer, op.count, at), at, op.outer, op.n,
                      op.count, op.index, x, y);
      }
    }
    const std::size_t inner = wide ? op.inner / width : op.inner;
    return launch(gather_kernel<T>, over(op.outer * op.count, inner, at), at, op.outer, op.n, inner,
                  op.count, op.index, x, y);
  });
}

int interpolate(const Interpolate& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = op.inner % kWide<T> == 0 && aligned({op.x, op.y});
    return with_width<T>(wide, [&](auto width) {
      return launch(interpolate_kernel<T, width>, over(op.outer * op.count, op.inner / width, at),
                    at, op.outer, op.n, op.inner, op.count, op.taps, op.index, op.weight,
                    static_cast<const T*>(op.x), static_cast<T*>(op.y));
    });
  });
}

}  // namespace mdprune::cuda
