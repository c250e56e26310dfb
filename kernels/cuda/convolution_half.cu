#include "convolution_launch.cuh"

namespace mdprune::cuda {

int launch_halves(const ConvolutionLaunch& l, const TileShape& tile) {
  // Large tiles are for what comes in runs.
  if (tile.filters == 128) return launch_tile<Half, MmaTile<128, 128, 64, 32, 3>, true, true>(l);
  if (tile.pixels == 128) return launch_tile<Half, MmaTile<128, 64, 64, 32, 3>, true, true>(l);
  if (tile.filters == 64) return launch_any<Half, MmaTile<64, 64, 32, 32, 4>>(l);
  if (tile.pixels == 64) return launch_any<Half, MmaTile<64, 32, 32, 16, 4>>(l);
  return launch_any<Half, MmaTile<32, 32, 16, 16, 4>>(l);
}

}  // namespace mdprune::cuda
