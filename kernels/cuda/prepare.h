// What a convolution's kernel needs to know about one domain, computed once on the host when the
// weights are uploaded: which stored rows and columns it reads and how they line up.

#pragma once

#include <cstdint>
#include <vector>

#include "../cpu/kernels.h"
#include "kernels.h"

namespace mdprune::cuda {

// Tables to copy to the device as they are, to an address that is a multiple of 16 bytes.
struct ConvolutionTables {
  std::vector<std::uint8_t> bytes;
  std::size_t channels, rows, columns, strides, slabs;  // where each begins in `bytes`
  std::size_t reduction;
  std::size_t chunks;
  bool x_runs;
  bool w_runs;
};

// `weights` has the device address of every slab of the convolution (of the packed weight if it has
// none), whose elements are of `type` in the order of the host's. Operands of `c` are not read, its
// index lists and bit sets are. A weight of 2^31 elements or more, of which a table cannot tell,
// gives tables without bytes.
ConvolutionTables prepare(const cpu::Convolution& c, Type type, const void* const* weights);

// The convolution with its tables at `device`; the caller fills in the operands.
Convolution bind(const cpu::Convolution& c, Type type, const ConvolutionTables&,
                 const void* device);

}  // namespace mdprune::cuda
