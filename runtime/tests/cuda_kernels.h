// The CUDA launchers as a table like that of an instruction set: every call copies its operands to
// device memory, launches, and copies back what was written. With the emulation the case table of
// the CPU's kernels runs on them without a GPU.
//
// Convolution, depthwise and matmul are not in it.

#pragma once

#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace mdprune {

// Activations are stored as `type`. `misaligned`: they begin one element behind an address that is
// a multiple of 16, so that nothing is loaded 16 bytes at a time.
const cpu::Kernels& cuda_kernels(cuda::Type type, bool misaligned);

}  // namespace mdprune
