// TensorRT's headers ask for CUDA's; in the tests the emulation stands in for it.

#pragma once

#include <cuda_runtime.h>
