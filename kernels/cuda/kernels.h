// The CUDA kernels' launchers: device pointers and sizes in, one or two kernels launched on a
// stream. Nothing is allocated and nothing waits, so that every call can be captured in a graph.
// Names, layouts and formulas are those of cpu/kernels.h and docs/native-format.md.
//
// Every launcher returns 0 or the cudaError_t of the launch. Callers have checked shapes.
//
// Activations and weights are of one Type per call; scales, shifts and sums are float. Device
// pointers are multiples of their element; those that are multiples of 16 bytes run faster.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kinds.h"

namespace mdprune::cuda {

using namespace kinds;

enum Type : std::uint32_t { kFloat, kHalf };

constexpr std::size_t size_of(Type type) { return type == kFloat ? 4 : 2; }

// The workspace begins with this many bytes of counters. They are zero before the first launch,
// and every launch leaves them so.
constexpr std::size_t kCounterBytes = 4 * 4096;

// Where and on what a kernel runs. One workspace serves all launches of one stream.
struct Launch {
  void* stream;  // cudaStream_t
  int multiprocessors;
  void* workspace;  // device memory, a multiple of 16 bytes, at least kCounterBytes
  std::size_t workspace_bytes;
};

// A stored rectangle of weights as the kernel finds it: element (tap, row, column) of a run of
// filters is data[column + (tap * rows + row) * stride], see ConvolutionTables.
struct Slab {
  const void* data;
  std::uint64_t rows;
};

// Which stored row a reduction channel reads: none (zeros) if slab < 0.
struct alignas(8) Row {
  std::int32_t slab;
  std::int32_t row;
};

// How one convolution's products are cut into thread blocks; see candidates().
struct Tiling {
  std::int32_t tile;    // of those of the type
  std::int32_t splits;  // parts of the reduction, summed in order
};

// A convolution with the tables of one domain, in device memory; prepare.h makes them. The
// reduction is reordered and padded so that its entries are neighbours in x wherever that is worth
// it; as many as fill 16 bytes are a chunk, and so are as many filters.
struct Convolution {
  Type type;
  std::size_t batch;
  Window window;
  bool transposed;
  std::size_t groups;
  std::size_t in_channels;     // of x, all of them
  std::size_t filters;         // of y, all groups
  std::size_t stored_filters;  // those that have weights; y is 0 behind them
  std::size_t reduction;       // channels read per group, padded
  std::size_t chunks;          // of filters per slab and group, padded to 8 filters
  bool x_runs;                 // every chunk of the reduction is one aligned run of x
  bool w_runs;                 // every chunk of filters is one aligned run of every stored row
  // groups x reduction positions in x; of the chunks' beginnings if x_runs.
  const std::int32_t* channels;
  const Row* rows;  // reduction, the same for all groups
  // slabs x groups x filters in chunks: offset in the slab, -1: none; of the chunks' beginnings if
  // w_runs.
  const std::int32_t* columns;
  const std::int32_t* strides;  // slabs x groups x chunks: elements from a row to the next
  const Slab* slabs;
  const void* x;
  void* y;
  const float* scale;                  // filters, or null
  const float* shift;                  // filters, or null
  const void* residual;                // as y, or null
  const std::int32_t* residual_index;  // filters positions in the residual's channels, or null
  std::size_t residual_channels;
  Activation activation;
  void* y2;  // as y, or null
  const float* scale2;
  const float* shift2;
  Activation activation2;
};

struct Depthwise {
  Type type;
  std::size_t batch;
  Window window;
  std::size_t in_channels;
  std::size_t filters;
  const void* weight;
  const void* x;
  void* y;
  const float* scale;
  const float* shift;
  const void* residual;
  Activation activation;
};

struct Pool {
  Type type;
  std::size_t batch;
  Window window;
  std::size_t channels;
  std::uint32_t kind;
  const void* x;
  void* y;
};

// rows x n_in -> rows x n; index, scale and shift may be null. y may be x where index is null.
struct Affine {
  Type type;
  std::size_t rows;
  std::size_t n_in;
  std::size_t n;
  const void* x;
  void* y;
  const std::int32_t* index;
  const float* scale;
  const float* shift;
  Activation activation;
};

struct Unary {
  Type type;
  std::size_t n;
  const void* x;
  void* y;
  Activation activation;
};

constexpr std::size_t kMaxAxes = 16;

// Broadcast is resolved into strides of `rank` axes (0 where an operand does not vary). Sizes and
// strides are host memory.
struct Binary {
  Type type;
  std::uint32_t kind;
  std::size_t rank;
  const std::size_t* size;
  const std::size_t* a_stride;
  const std::size_t* b_stride;
  const void* a;
  const void* b;
  void* y;
  Activation activation;
};

struct Select {
  Type type;
  std::size_t rank;
  const std::size_t* size;
  const std::size_t* c_stride;
  const std::size_t* a_stride;
  const std::size_t* b_stride;
  const void* c;
  const void* a;
  const void* b;
  void* y;
};

// x and y are [outer, n, inner]; y is [outer, inner] for Reduce.
struct Reduce {
  Type type;
  std::uint32_t kind;
  std::size_t outer;
  std::size_t n;
  std::size_t inner;
  const void* x;
  void* y;
};

struct Softmax {
  Type type;
  bool log;
  std::size_t outer;
  std::size_t n;
  std::size_t inner;
  const void* x;
  void* y;
};

struct Normalize {
  Type type;
  float epsilon;
  std::size_t outer;
  std::size_t n;
  std::size_t inner;
  const void* x;
  void* y;
};

// y[i] (m, n) = a[i] (m, k) b[i] (k, n) for every i below batch; a_offset and b_offset, device
// memory, are the elements before the i-th matrix, or null: they follow one another.
struct MatMul {
  Type type;
  std::size_t batch;
  std::size_t m;
  std::size_t k;
  std::size_t n;
  const void* a;
  const void* b;
  void* y;
  const std::int64_t* a_offset;
  const std::int64_t* b_offset;
};

// Sizes and strides are host memory; x and y point at the element of index vector 0.
struct Move {
  Type type;
  std::size_t rank;
  const std::size_t* size;
  const std::ptrdiff_t* x_stride;
  const std::ptrdiff_t* y_stride;
  const void* x;
  void* y;
};

struct Gather {
  Type type;
  std::size_t outer;
  std::size_t n;
  std::size_t inner;
  std::size_t count;
  const std::int32_t* index;
  const void* x;
  void* y;
};

struct Fill {
  Type type;
  std::size_t n;
  float value;
  void* y;
};

struct Interpolate {
  Type type;
  std::size_t outer;
  std::size_t n;
  std::size_t inner;
  std::size_t count;
  std::size_t taps;
  const std::int32_t* index;
  const float* weight;
  const void* x;
  void* y;
};

// y = x in another type: the network's inputs and outputs are float.
struct Convert {
  Type from;
  Type to;
  std::size_t n;
  const void* x;
  void* y;
};

// The tilings that are worth timing on a device, the one that the cost model expects to be fastest
// first. `choose` returns that one.
std::vector<Tiling> candidates(const Convolution&, int multiprocessors);
Tiling choose(const Convolution&, int multiprocessors);
// Bytes of workspace that a tiling takes, counters included.
std::size_t workspace_bytes(const Convolution&, Tiling);

int convolution(const Convolution&, Tiling, const Launch&);
int depthwise(const Depthwise&, const Launch&);
int pool(const Pool&, const Launch&);
int affine(const Affine&, const Launch&);
int unary(const Unary&, const Launch&);
int binary(const Binary&, const Launch&);
int select(const Select&, const Launch&);
int reduce(const Reduce&, const Launch&);
int softmax(const Softmax&, const Launch&);
int normalize(const Normalize&, const Launch&);
int matmul(const MatMul&, const Launch&);
int move(const Move&, const Launch&);
int gather(const Gather&, const Launch&);
int fill(const Fill&, const Launch&);
int interpolate(const Interpolate&, const Launch&);
int convert(const Convert&, const Launch&);

}  // namespace mdprune::cuda
