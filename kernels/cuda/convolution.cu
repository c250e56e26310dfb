// What the host works out for a launch.

#include <cstdint>
#include <limits>

#include "convolution_launch.cuh"

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
  e.stored = static_cast<std::int32_t>(c.stored_filters);
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

ConvolutionSource make_source(const Convolution& c) {
  ConvolutionSource s{};
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
  return s;
}

}  // namespace

int convolution(const Convolution& c, Tiling tiling, const Launch& launched) {
  const TileShape* const tile = find_tile(c, tiling);
  if (tile == nullptr || !fits(c)) return cudaErrorInvalidValue;
  if (c.x_runs && !aligned(c.x)) return cudaErrorInvalidValue;
  if (launched.workspace_bytes < workspace_bytes(c, tiling)) return cudaErrorInvalidValue;
  const Tiles tiles = count_tiles(c, *tile);
  ConvolutionLaunch l{};
  ConvolutionArguments& a = l.arguments;
  a.source = make_source(c);
  a.epilogue = make_epilogue(c);
  a.filters = static_cast<int>(c.filters / c.groups);
  a.filter_tiles = static_cast<int>(tiles.along_filters);
  a.steps = static_cast<int>(tiles.steps);
  a.counters = static_cast<unsigned*>(launched.workspace);
  a.parts =
      reinterpret_cast<float*>(static_cast<std::uint8_t*>(launched.workspace) + kCounterBytes);
  l.grid = dim3(static_cast<unsigned>(tiles.along_pixels * tiles.along_filters),
                static_cast<unsigned>(tiling.splits), static_cast<unsigned>(c.groups));
  l.x_runs = c.x_runs;
  l.w_runs = c.w_runs;
  l.stream = launched.stream;
  return c.type == kHalf ? launch_halves(l, *tile) : launch_floats(l, *tile);
}

}  // namespace mdprune::cuda
