// Chooses the kernel of a tiling and launches it.

#include <cstdint>
#include <limits>

#include "convolution.cuh"
#include "launch.cuh"
#include "tilings.h"

namespace mdprune::cuda {
namespace {

constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();

std::size_t volume(const std::size_t* sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// Whether everything that the kernel counts in 32 bits fits.
bool fits(const Convolution& c) {
  const std::size_t taps = volume(c.window.kernel);
  for (int axis = 0; axis < 3; ++axis) {
    if (c.window.output[axis] + c.window.pad[axis] > kMost) return false;
  }
  return c.batch * volume(c.window.output) <= kMost && c.batch * volume(c.window.input) <= kMost &&
         (taps + 1) * (c.reduction + 64) <= kMost && c.filters + 128 <= kMost &&
         c.groups * c.reduction <= kMost && c.groups <= 65535;
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

Epilogue make_epilogue(const Convolution& c) {
  Epilogue e{};
  e.y = c.y;
  e.scale = c.scale;
  e.shift = c.shift;
  e.residual = c.residual;
  e.residual_index = c.residual_index;
  e.residual_channels = static_cast<std::int32_t>(c.residual_channels);
  e.filters = static_cast<std::int32_t>(c.filters);
  e.activation = c.activation;
  e.y2 = c.y2;
  e.scale2 = c.scale2;
  e.shift2 = c.shift2;
  e.activation2 = c.activation2;
  const std::size_t chunk = 16 / size_of(c.type);
  e.vectors = c.filters / c.groups % chunk == 0 && aligned(c.y) && aligned(c.y2) &&
              (c.residual_index != nullptr || aligned(c.residual));
  return e;
}

template <typename T, class Tile, bool x_runs, bool w_runs>
int launch_tile(const Convolution& c, Tiling tiling, const TileShape& tile,
                const Launch& launched) {
  static_assert(Tile::kThreads <= 256, "small blocks");
  const std::size_t workspace = workspace_bytes(c, tiling);
  if (launched.workspace_bytes < workspace) return cudaErrorInvalidValue;
  ConvolutionArguments a{};
  ConvolutionSource& s = a.source;
  s.window = window_arguments(c.window, c.transposed);
  s.pixels = static_cast<int>(c.batch * volume(c.window.output));
  s.in_channels = static_cast<int>(c.in_channels);
  s.groups = static_cast<int>(c.groups);
  s.reduction = static_cast<int>(c.reduction);
  s.chunks = static_cast<int>(c.chunks);
  s.channels = c.channels;
  s.rows = c.rows;
  s.columns = c.columns;
  s.strides = c.strides;
  s.slabs = c.slabs;
  s.x = c.x;
  a.epilogue = make_epilogue(c);
  a.filters = static_cast<int>(c.filters / c.groups);
  const Tiles tiles = count_tiles(c, tile);
  a.filter_tiles = static_cast<int>(tiles.along_filters);
  a.steps = static_cast<int>(tiles.steps);
  a.counters = static_cast<unsigned*>(launched.workspace);
  a.parts =
      reinterpret_cast<float*>(static_cast<std::uint8_t*>(launched.workspace) + kCounterBytes);
  const dim3 grid(static_cast<unsigned>(tiles.along_pixels * tiles.along_filters),
                  static_cast<unsigned>(tiling.splits), static_cast<unsigned>(c.groups));
  return launch(convolution_kernel<T, Tile, x_runs, w_runs>, grid, Tile::kThreads,
                Stages<T, Tile>::kBytes + sizeof(Pixel) * Tile::kPixels, launched.stream, a);
}

// Large tiles are for what comes in runs.
template <typename T, class Tile>
int launch_runs(const Convolution& c, Tiling tiling, const TileShape& tile,
                const Launch& launched) {
  return launch_tile<T, Tile, true, true>(c, tiling, tile, launched);
}

template <typename T, class Tile>
int launch_any(const Convolution& c, Tiling tiling, const TileShape& tile, const Launch& launched) {
  if (c.x_runs && c.w_runs) return launch_tile<T, Tile, true, true>(c, tiling, tile, launched);
  if (c.x_runs) return launch_tile<T, Tile, true, false>(c, tiling, tile, launched);
  if (c.w_runs) return launch_tile<T, Tile, false, true>(c, tiling, tile, launched);
  return launch_tile<T, Tile, false, false>(c, tiling, tile, launched);
}

}  // namespace

int convolution(const Convolution& c, Tiling tiling, const Launch& launched) {
  const TileShape* const tile = find_tile(c, tiling);
  if (tile == nullptr || !fits(c)) return cudaErrorInvalidValue;
  if (c.x_runs && !aligned(c.x)) return cudaErrorInvalidValue;
  if (c.type == kFloat) {
    if (tile->pixels == 64)
      return launch_any<float, FmaTile<64, 64, 8, 3>>(c, tiling, *tile, launched);
    return launch_any<float, FmaTile<32, 32, 2, 4>>(c, tiling, *tile, launched);
  }
  if (tile->filters == 128) {
    return launch_runs<Half, MmaTile<128, 128, 64, 32, 3>>(c, tiling, *tile, launched);
  }
  if (tile->pixels == 128) {
    return launch_runs<Half, MmaTile<128, 64, 64, 32, 3>>(c, tiling, *tile, launched);
  }
  if (tile->filters == 64) {
    return launch_any<Half, MmaTile<64, 64, 32, 32, 4>>(c, tiling, *tile, launched);
  }
  if (tile->pixels == 64) {
    return launch_any<Half, MmaTile<64, 32, 32, 16, 4>>(c, tiling, *tile, launched);
  }
  return launch_any<Half, MmaTile<32, 32, 16, 16, 4>>(c, tiling, *tile, launched);
}

}  // namespace mdprune::cuda
