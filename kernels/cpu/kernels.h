// The CPU kernels: plain pointers and sizes in, nothing allocated, nothing thrown.
//
// Every instruction set has one table of the same functions, compiled from the same sources;
// `kernels_for_this_cpu` picks one at run time. Layouts and formulas are those of
// docs/native-format.md. Callers have checked shapes; kernels do not.

#pragma once

#include <cstddef>
#include <cstdint>

#include "../kinds.h"

namespace mdprune::cpu {

using namespace kinds;

// Scratch memory of one worker, 64-byte aligned.
constexpr std::size_t kScratchBytes = std::size_t{3} << 19;  // 1.5 MiB

// Runs body(argument, index, worker) for every index below count, on some number of workers; worker
// numbers are below `workers`. Returns when all are done.
struct Parallel {
  using Body = void (*)(void* argument, std::size_t index, std::size_t worker);
  void (*run)(void* self, std::size_t count, Body body, void* argument);
  void* self;
  std::size_t workers;
  std::uint8_t* scratch;  // workers x kScratchBytes
  // The convolution that runs next, whose weights may be fetched meanwhile, or null.
  const struct Convolution* next = nullptr;
};

// A rectangle of stored weights, (taps, rows, filters) floats. Bit j of `bits` says whether stored
// filter j is used, bit r of `row_bits` whether stored row r is; null: all are. The used rows are
// the next reduction channels, or where the slab `joins` those of the slab before it. The used
// filters are those of the output of which `outputs` has the bit; null: all. Slabs that join make
// the others of the same rows complete.
struct Slab {
  const float* data;
  std::size_t rows;
  std::size_t filters;
  const std::uint32_t* bits;
  const std::uint32_t* row_bits;
  std::size_t used_rows;
  const std::uint32_t* outputs = nullptr;
  bool joins = false;
};

struct Convolution {
  std::size_t batch;
  Window window;
  bool transposed;
  std::size_t groups;
  std::size_t in_channels;     // of x, all of them
  std::size_t filters;         // of y, all groups
  std::size_t reduction;       // channels read per group
  const std::int32_t* index;   // groups x reduction positions in x, or null
  std::size_t stored_filters;  // those that the weights have: what y has behind them is not read
  const Slab* slabs;           // form 0, or null
  std::size_t slab_count;
  const float* packed;  // form 1, or null
  const float* x;
  float* y;
  const float* scale;                  // filters, or null
  const float* shift;                  // filters, or null
  const float* residual;               // as y, or null
  const std::int32_t* residual_index;  // filters positions in the residual's channels, or null
  std::size_t residual_channels;
  Activation activation;
  float* y2;  // as y, or null
  const float* scale2;
  const float* shift2;
  Activation activation2;
};

struct Depthwise {
  std::size_t batch;
  Window window;
  std::size_t in_channels;
  std::size_t filters;
  const float* weight;
  const float* x;
  float* y;
  const float* scale;
  const float* shift;
  const float* residual;
  Activation activation;
};

struct Pool {
  std::size_t batch;
  Window window;
  std::size_t channels;
  std::uint32_t kind;
  const float* x;
  float* y;
};

struct Kernels {
  const char* name;  // "avx512", "avx2", "neon", "portable", "reference"
  void (*convolution)(const Convolution&, const Parallel&);
  void (*depthwise)(const Depthwise&, const Parallel&);
  void (*pool)(const Pool&, const Parallel&);
  // rows x n_in -> rows x n; index, scale and shift may be null.
  void (*affine)(std::size_t rows, std::size_t n_in, std::size_t n, const float* x, float* y,
                 const std::int32_t* index, const float* scale, const float* shift, Activation,
                 const Parallel&);
  void (*unary)(std::size_t n, const float* x, float* y, Activation, const Parallel&);
  // Broadcast is resolved into strides of `rank` axes (0 where an operand does not vary).
  void (*binary)(std::uint32_t kind, std::size_t rank, const std::size_t* size,
                 const std::size_t* a_stride, const std::size_t* b_stride, const float* a,
                 const float* b, float* y, Activation, const Parallel&);
  void (*select)(std::size_t rank, const std::size_t* size, const std::size_t* c_stride,
                 const std::size_t* a_stride, const std::size_t* b_stride, const float* c,
                 const float* a, const float* b, float* y, const Parallel&);
  void (*reduce)(std::uint32_t kind, std::size_t outer, std::size_t n, std::size_t inner,
                 const float* x, float* y, const Parallel&);
  void (*softmax)(bool log, std::size_t outer, std::size_t n, std::size_t inner, const float* x,
                  float* y, const Parallel&);
  void (*normalize)(float epsilon, std::size_t outer, std::size_t n, std::size_t inner,
                    const float* x, float* y, const Parallel&);
  // One matrix of the batch at a time: a (m, k), b (k, n), y (m, n).
  void (*matmul)(std::size_t m, std::size_t k, std::size_t n, const float* a, const float* b,
                 float* y, const Parallel&);
  void (*move)(std::size_t rank, const std::size_t* size, const std::ptrdiff_t* x_stride,
               const std::ptrdiff_t* y_stride, const float* x, float* y, const Parallel&);
  void (*gather)(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                 const std::int32_t* index, const float* x, float* y, const Parallel&);
  void (*interpolate)(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                      std::size_t taps, const std::int32_t* index, const float* weight,
                      const float* x, float* y, const Parallel&);
};

// Returns the table of an instruction set by name ("reference": plain loops in double), or null if
// it is unknown, not compiled in or not there on this processor. A null name asks for the one that
// the environment variable MDPRUNE_ISA names or, where that is not set, the fastest that is there.
const Kernels* find_kernels(const char* name);

}  // namespace mdprune::cpu
