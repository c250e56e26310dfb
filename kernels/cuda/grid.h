// How launchers choose threads, types and widths.

#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels.h"
#include "launch.cuh"

namespace mdprune::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads;
};

constexpr std::size_t kBlockThreads = 256;
// Grids are a few times what a device runs at once; threads take the rest in turn.
constexpr std::size_t kBlocksPerMultiprocessor = 16;

inline std::size_t blocks_at_most(const Launch& at) {
  return kBlocksPerMultiprocessor * static_cast<std::size_t>(std::max(1, at.multiprocessors));
}

inline unsigned clamp_blocks(std::size_t blocks, std::size_t most) {
  return static_cast<unsigned>(std::max<std::size_t>(1, std::min(blocks, most)));
}

inline std::size_t divide_up(std::size_t a, std::size_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// The least power of two that is not below n, at most `most`, which is one too.
inline unsigned power_of_two(std::size_t n, unsigned most) {
  unsigned power = 1;
  while (power < most && power < n) power *= 2;
  return power;
}

inline Grid over(std::size_t n, const Launch& at) {
  return {clamp_blocks(divide_up(n, kBlockThreads), blocks_at_most(at)), kBlockThreads};
}

// The x axis runs along the columns, so that neighbouring threads take neighbouring columns.
inline Grid over(std::size_t rows, std::size_t columns, const Launch& at) {
  const unsigned across = power_of_two(columns, kBlockThreads);
  const unsigned down = kBlockThreads / across;
  const unsigned x = clamp_blocks(divide_up(columns, across), blocks_at_most(at));
  const std::size_t most = std::min<std::size_t>(65535, divide_up(blocks_at_most(at), x));
  return {dim3(x, clamp_blocks(divide_up(rows, down), most)), dim3(across, down)};
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), const Grid& grid, const Launch& at,
           Arguments... arguments) {
  return launch(kernel, grid.blocks, grid.threads, 0, at.stream, arguments...);
}

// Whether 16 bytes may be read or written at once at all of them.
inline bool aligned(std::initializer_list<const void*> addresses) {
  return std::all_of(addresses.begin(), addresses.end(), [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  });
}

// Elements in 16 bytes.
template <typename T>
constexpr int kWide = static_cast<int>(16 / sizeof(T));

// f(the width as a constant): kWide<T> or 1.
template <typename T, typename F>
int with_width(bool wide, const F& f) {
  return wide ? f(std::integral_constant<int, kWide<T>>()) : f(std::integral_constant<int, 1>());
}

}  // namespace mdprune::cuda
