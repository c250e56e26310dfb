// The tables that can be compiled in; find_kernels knows which are.

#pragma once

#include "kernels.h"

namespace mdprune::cpu {

namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace neon {
extern const Kernels kKernels;
}
namespace portable {
extern const Kernels kKernels;
}
namespace reference {
extern const Kernels kKernels;
}

}  // namespace mdprune::cpu
