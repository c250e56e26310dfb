// The tiles that the convolution kernel is compiled for, and how many of them a convolution takes.

#pragma once

#include "kernels.h"

namespace mdprune::cuda {

struct TileShape {
  int pixels;
  int filters;
  int resident;     // blocks of one multiprocessor at a time
  bool needs_runs;  // of x and weights
};

struct Tiles {
  std::size_t along_pixels;
  std::size_t along_filters;  // per group
  std::size_t steps;          // of the reduction
};

// Null if there is none for this convolution.
const TileShape* find_tile(const Convolution&, Tiling);

Tiles count_tiles(const Convolution&, const TileShape&);

}  // namespace mdprune::cuda
