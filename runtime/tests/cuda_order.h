// The order of warps, where a device is emulated.

#pragma once

#include <cuda_runtime.h>

namespace mdprune {

// From the last to the first instead of from the first to the last; a GPU has its own order.
inline void reverse_warps([[maybe_unused]] bool reversed) {
#ifdef MDPRUNE_EMULATED_CUDA
  cuda::emulate::reversed = reversed;
#endif
}

}  // namespace mdprune
