#include "convolution_launch.cuh"

namespace mdprune::cuda {

int launch_floats(const ConvolutionLaunch& l, const TileShape& tile) {
  if (tile.pixels == 64) return launch_any<float, FmaTile<64, 64, 8, 3>>(l);
  return launch_any<float, FmaTile<32, 32, 2, 4>>(l);
}

}  // namespace mdprune::cuda
