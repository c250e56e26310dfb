// Launches of one tile. The kernels of halves and of floats are compiled apart, side by side.

#pragma once

#include "convolution.cuh"
#include "launch.cuh"
#include "tilings.h"

namespace mdprune::cuda {

struct ConvolutionLaunch {
  ConvolutionArguments arguments;
  dim3 grid;
  bool x_runs;
  bool w_runs;
  void* stream;
};

int launch_halves(const ConvolutionLaunch&, const TileShape&);
int launch_floats(const ConvolutionLaunch&, const TileShape&);

template <typename T, class Tile, bool x_runs, bool w_runs>
int launch_tile(const ConvolutionLaunch& l) {
  return launch(convolution_kernel<T, Tile, x_runs, w_runs>, l.grid, Tile::kThreads,
                Stages<T, Tile>::kBytes + sizeof(Pixel) * Tile::kPixels, l.stream, l.arguments);
}

template <typename T, class Tile>
int launch_any(const ConvolutionLaunch& l) {
  if (l.x_runs && l.w_runs) return launch_tile<T, Tile, true, true>(l);
  if (l.x_runs) return launch_tile<T, Tile, true, false>(l);
  if (l.w_runs) return launch_tile<T, Tile, false, true>(l);
  return launch_tile<T, Tile, false, false>(l);
}

}  // namespace mdprune::cuda
