// Compiled once per instruction set, with its flags and MDPRUNE_ISA naming it.

#include "convolution.inl"
#include "elementwise.inl"
#include "matmul.inl"
#include "movement.inl"
#include "reduce.inl"
#include "tables.h"
#include "window.inl"

#define MDPRUNE_TEXT_OF(name) #name
#define MDPRUNE_TEXT(name) MDPRUNE_TEXT_OF(name)

namespace mdprune::cpu::MDPRUNE_ISA {

const Kernels kKernels = {MDPRUNE_TEXT(MDPRUNE_ISA),
                          convolution,
                          depthwise,
                          pool,
                          affine,
                          unary,
                          binary,
                          select,
                          reduce,
                          softmax,
                          normalize,
                          matmul,
                          move,
                          gather,
                          interpolate};

}  // namespace mdprune::cpu::MDPRUNE_ISA
