// Launchers of reduce, softmax and normalize.

#include "grid.h"
#include "reduce.cuh"

namespace mdprune::cuda {
namespace {

// Blocks of 256 threads over [outer, n, inner], see reduce.cuh.
Grid over_columns(std::size_t outer, std::size_t n, std::size_t inner, const Launch& at) {
  const unsigned x = power_of_two(inner, 32);
  const unsigned y = power_of_two(n, kReduceThreads / x);
  const unsigned z = kReduceThreads / x / y;
  const unsigned across = clamp_blocks(divide_up(inner, x), blocks_at_most(at));
  const std::size_t most = std::min<std::size_t>(65535, divide_up(blocks_at_most(at), across));
  // A block has at most 64 threads along z.
  const unsigned deep = std::min(z, 64U);
  return {dim3(across, clamp_blocks(divide_up(outer, deep), most)), dim3(x, y, deep)};
}

// Into how many parts n is cut: enough blocks for the device, enough elements for a thread.
std::size_t parts_of(const Reduce& op, const Grid& grid, std::size_t state_bytes,
                     const Launch& at) {
  constexpr std::size_t kLeastElements = 16;
  constexpr std::size_t kMostParts = 64;
  const std::size_t blocks = std::size_t{grid.blocks.x} * grid.blocks.y;
  const std::size_t wanted = 2 * static_cast<std::size_t>(at.multiprocessors) / blocks;
  const std::size_t useful = op.n / (grid.threads.y * kLeastElements);
  const std::size_t room =
      at.workspace_bytes < kCounterBytes ? 0 : at.workspace_bytes - kCounterBytes;
  const std::size_t fitting = room / (op.outer * op.inner * state_bytes);
  return std::max<std::size_t>(1, std::min({wanted, useful, fitting, kMostParts}));
}

template <typename T, typename Operation>
int reduce_with(const Reduce& op, const Launch& at) {
  using State = typename Operation::State;
  Grid grid = over_columns(op.outer, op.n, op.inner, at);
  const std::size_t parts = parts_of(op, grid, sizeof(State), at);
  grid.blocks.z = static_cast<unsigned>(parts);
  const auto* x = static_cast<const T*>(op.x);
  auto* y = static_cast<T*>(op.y);
  auto* partial =
      reinterpret_cast<State*>(static_cast<std::uint8_t*>(at.workspace) + kCounterBytes);
  const int status = launch(reduce_kernel<T, Operation>, grid, at, op.kind, op.outer, op.n,
                            op.inner, x, y, partial);
  if (parts == 1 || status != 0) return status;
  const std::size_t columns = op.outer * op.inner;
  return launch(reduce_parts_kernel<T, Operation>, over(columns, at), at, op.kind, parts, columns,
                op.n, partial, y);
}

}  // namespace

int reduce(const Reduce& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    switch (op.kind) {
      case kMax: return reduce_with<T, Maximum>(op, at);
      case kMin: return reduce_with<T, Minimum>(op, at);
      case kProduct: return reduce_with<T, Product>(op, at);
      case kLogOfSumOfExponentials: return reduce_with<T, LogSumExp>(op, at);
      default: return reduce_with<T, Sum>(op, at);
    }
  });
}

int softmax(const Softmax& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(softmax_kernel<T>, over_columns(op.outer, op.n, op.inner, at), at, op.log,
                  op.outer, op.n, op.inner, static_cast<const T*>(op.x), static_cast<T*>(op.y));
  });
}

int normalize(const Normalize& op, const Launch& at) {
  return with_type(op.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(normalize_kernel<T>, over_columns(op.outer, op.n, op.inner, at), at, op.epsilon,
                  op.outer, op.n, op.inner, static_cast<const T*>(op.x), static_cast<T*>(op.y));
  });
}

}  // namespace mdprune::cuda
