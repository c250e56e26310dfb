#include <algorithm>
#include <cstdint>
#include <limits>

#include "launch.cuh"
#include "matmul.cuh"

namespace mdprune::cuda {
namespace {

constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

template <typename T, class Tile, bool a_runs, bool b_runs>
int launch_kernel(const MatMul& c, const Launch& launched) {
  MatMulArguments a{};
  a.m = static_cast<int>(c.m);
  a.k = static_cast<int>(c.k);
  a.n = static_cast<int>(c.n);
  a.a = c.a;
  a.b = c.b;
  a.y = c.y;
  a.a_offset = c.a_offset;
  a.b_offset = c.b_offset;
  a.vectors = c.n % kChunk<T> == 0 && aligned(c.y);
  // The batch in parts of what a grid takes.
  for (std::size_t first = 0; first < c.batch; first += 65535) {
    MatMulArguments now = a;
    if (a.a_offset != nullptr) {
      now.a_offset += first;
    } else {
      now.a = static_cast<const T*>(c.a) + first * c.m * c.k;
    }
    if (a.b_offset != nullptr) {
      now.b_offset += first;
    } else {
      now.b = static_cast<const T*>(c.b) + first * c.k * c.n;
    }
    now.y = static_cast<T*>(c.y) + first * c.m * c.n;
    const dim3 grid(static_cast<unsigned>((c.m + Tile::kPixels - 1) / Tile::kPixels),
                    static_cast<unsigned>((c.n + Tile::kFilters - 1) / Tile::kFilters),
                    static_cast<unsigned>(std::min<std::size_t>(c.batch - first, 65535)));
    const int error = launch(matmul_kernel<T, Tile, a_runs, b_runs>, grid, Tile::kThreads,
                             Stages<T, Tile>::kBytes, launched.stream, now);
    if (error != 0) return error;
  }
  return 0;
}

template <typename T, class Tile>
int launch_runs(const MatMul& c, const Launch& launched) {
  // What offsets there are is only known on the device: whole matrices keep the alignment.
  const bool a_runs = c.k % kChunk<T> == 0 && aligned(c.a);
  const bool b_runs = c.n % kChunk<T> == 0 && aligned(c.b);
  if (a_runs && b_runs) return launch_kernel<T, Tile, true, true>(c, launched);
  if (a_runs) return launch_kernel<T, Tile, true, false>(c, launched);
  if (b_runs) return launch_kernel<T, Tile, false, true>(c, launched);
  return launch_kernel<T, Tile, false, false>(c, launched);
}

}  // namespace

int matmul(const MatMul& c, const Launch& launched) {
  const bool fits = c.m <= kMost - 64 && c.k <= kMost - 64 && c.n <= 65535 * 64;
  if (!fits) return cudaErrorInvalidValue;
  if (c.type == kFloat) return launch_runs<float, FmaTile<64, 64, 8, 3>>(c, launched);
  return launch_runs<Half, MmaTile<64, 64, 32, 32, 4>>(c, launched);
}

}  // namespace mdprune::cuda
