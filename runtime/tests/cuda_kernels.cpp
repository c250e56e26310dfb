#include "cuda_kernels.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <stdexcept>
#include <string>
#include <vector>

namespace mdprune {
namespace {

using cpu::Parallel;
using cuda::Type;

void check(int error) {
  if (error != 0) throw std::runtime_error("CUDA error " + std::to_string(error));
}

// One call: its operands in device memory, each with no byte behind its end.
template <Type type, std::size_t first>
class Call {
  using T = std::conditional_t<type == cuda::kHalf, __half, float>;

 public:
  Call() {
    check(cudaMalloc(&workspace_, kWorkspace));
    check(cudaMemset(workspace_, 0, cuda::kCounterBytes));
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    for (const Operand& operand : operands_) cudaFree(operand.memory);
    cudaFree(workspace_);
  }

  cuda::Launch launch() const { return {nullptr, 4, workspace_, kWorkspace}; }

  // `count` activations; the same host address gives the same device address.
  T* activations(const float* host, std::size_t count) {
    for (const Operand& operand : operands_) {
      if (operand.host == host) return static_cast<T*>(operand.memory) + first;
    }
    std::vector<T> values(count);
    for (std::size_t i = 0; i < count; ++i) {
      if constexpr (type == cuda::kHalf) {
        values[i] = __float2half(host[i]);
      } else {
        values[i] = host[i];
      }
    }
    T* const memory = static_cast<T*>(allocate(host, (first + count) * sizeof(T))) + first;
    check(cudaMemcpy(memory, values.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    return memory;
  }

  // Parameters, as they are; null if there are none.
  template <typename P>
  const P* parameters(const P* host, std::size_t count) {
    if (host == nullptr) return nullptr;
    void* const memory = allocate(host, count * sizeof(P));
    check(cudaMemcpy(memory, host, count * sizeof(P), cudaMemcpyHostToDevice));
    return static_cast<const P*>(memory);
  }

  // Ends the call: `count` activations go back to where they came from.
  void finish(int error, float* host, std::size_t count) {
    check(error);
    std::vector<T> values(count);
    check(cudaMemcpy(values.data(), activations(host, count), count * sizeof(T),
                     cudaMemcpyDeviceToHost));
    for (std::size_t i = 0; i < count; ++i) {
      if constexpr (type == cuda::kHalf) {
        host[i] = __half2float(values[i]);
      } else {
        host[i] = values[i];
      }
    }
  }

 private:
  static constexpr std::size_t kWorkspace = cuda::kCounterBytes + 4096;

  struct Operand {
    const void* host;
    void* memory;
  };

  void* allocate(const void* host, std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes));
    operands_.push_back({host, memory});
    return memory;
  }

  std::vector<Operand> operands_;
  void* workspace_ = nullptr;
};

std::size_t volume(const std::size_t* sizes) { return sizes[0] * sizes[1] * sizes[2]; }

std::size_t product(std::size_t rank, const std::size_t* size) {
  std::size_t elements = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) elements *= size[axis];
  return elements;
}

// Elements from the first to the last that strides reach.
std::size_t extent(std::size_t rank, const std::size_t* size, const std::size_t* stride) {
  std::size_t last = 0;
  for (std::size_t axis = 0; axis < rank; ++axis) last += (size[axis] - 1) * stride[axis];
  return last + 1;
}

// The first and the last that signed ones reach.
struct Reach {
  std::ptrdiff_t lowest = 0;
  std::ptrdiff_t highest = 0;
  Reach(std::size_t rank, const std::size_t* size, const std::ptrdiff_t* stride) {
    for (std::size_t axis = 0; axis < rank; ++axis) {
      const std::ptrdiff_t reach = static_cast<std::ptrdiff_t>(size[axis] - 1) * stride[axis];
      (reach < 0 ? lowest : highest) += reach;
    }
  }
  std::size_t elements() const { return static_cast<std::size_t>(highest - lowest + 1); }
};

template <Type type, std::size_t first>
struct Launchers {
  using OneCall = Call<type, first>;

  static void pool(const cpu::Pool& op, const Parallel&) {
    OneCall call;
    const std::size_t elements = op.batch * volume(op.window.output) * op.channels;
    const auto* x = call.activations(op.x, op.batch * volume(op.window.input) * op.channels);
    const cuda::Pool launched{
        type, op.batch, op.window, op.channels, op.kind, x, call.activations(op.y, elements)};
    call.finish(cuda::pool(launched, call.launch()), op.y, elements);
  }

  static void affine(std::size_t rows, std::size_t n_in, std::size_t n, const float* x, float* y,
                     const std::int32_t* index, const float* scale, const float* shift,
                     cpu::Activation activation, const Parallel&) {
    OneCall call;
    const cuda::Affine launched{type,
                                rows,
                                n_in,
                                n,
                                call.activations(x, rows * n_in),
                                call.activations(y, rows * n),
                                call.parameters(index, n),
                                call.parameters(scale, n),
                                call.parameters(shift, n),
                                activation};
    call.finish(cuda::affine(launched, call.launch()), y, rows * n);
  }

  static void unary(std::size_t n, const float* x, float* y, cpu::Activation activation,
                    const Parallel&) {
    OneCall call;
    const cuda::Unary launched{type, n, call.activations(x, n), call.activations(y, n), activation};
    call.finish(cuda::unary(launched, call.launch()), y, n);
  }

  static void binary(std::uint32_t kind, std::size_t rank, const std::size_t* size,
                     const std::size_t* a_stride, const std::size_t* b_stride, const float* a,
                     const float* b, float* y, cpu::Activation activation, const Parallel&) {
    OneCall call;
    const std::size_t elements = product(rank, size);
    const cuda::Binary launched{type,
                                kind,
                                rank,
                                size,
                                a_stride,
                                b_stride,
                                call.activations(a, extent(rank, size, a_stride)),
                                call.activations(b, extent(rank, size, b_stride)),
                                call.activations(y, elements),
                                activation};
    call.finish(cuda::binary(launched, call.launch()), y, elements);
  }

  static void select(std::size_t rank, const std::size_t* size, const std::size_t* c_stride,
                     const std::size_t* a_stride, const std::size_t* b_stride, const float* c,
                     const float* a, const float* b, float* y, const Parallel&) {
    OneCall call;
    const std::size_t elements = product(rank, size);
    const cuda::Select launched{type,
                                rank,
                                size,
                                c_stride,
                                a_stride,
                                b_stride,
                                call.activations(c, extent(rank, size, c_stride)),
                                call.activations(a, extent(rank, size, a_stride)),
                                call.activations(b, extent(rank, size, b_stride)),
                                call.activations(y, elements)};
    call.finish(cuda::select(launched, call.launch()), y, elements);
  }

  static void reduce(std::uint32_t kind, std::size_t outer, std::size_t n, std::size_t inner,
                     const float* x, float* y, const Parallel&) {
    OneCall call;
    const cuda::Reduce launched{type,
                                kind,
                                outer,
                                n,
                                inner,
                                call.activations(x, outer * n * inner),
                                call.activations(y, outer * inner)};
    call.finish(cuda::reduce(launched, call.launch()), y, outer * inner);
  }

  static void softmax(bool log, std::size_t outer, std::size_t n, std::size_t inner, const float* x,
                      float* y, const Parallel&) {
    OneCall call;
    const std::size_t elements = outer * n * inner;
    const cuda::Softmax launched{
        type, log, outer, n, inner, call.activations(x, elements), call.activations(y, elements)};
    call.finish(cuda::softmax(launched, call.launch()), y, elements);
  }

  static void normalize(float epsilon, std::size_t outer, std::size_t n, std::size_t inner,
                        const float* x, float* y, const Parallel&) {
    OneCall call;
    const std::size_t elements = outer * n * inner;
    const cuda::Normalize launched{type,
                                   epsilon,
                                   outer,
                                   n,
                                   inner,
                                   call.activations(x, elements),
                                   call.activations(y, elements)};
    call.finish(cuda::normalize(launched, call.launch()), y, elements);
  }

  static void move(std::size_t rank, const std::size_t* size, const std::ptrdiff_t* x_stride,
                   const std::ptrdiff_t* y_stride, const float* x, float* y, const Parallel&) {
    OneCall call;
    const Reach from(rank, size, x_stride), to(rank, size, y_stride);
    const cuda::Move launched{type,
                              rank,
                              size,
                              x_stride,
                              y_stride,
                              call.activations(x + from.lowest, from.elements()) - from.lowest,
                              call.activations(y + to.lowest, to.elements()) - to.lowest};
    call.finish(cuda::move(launched, call.launch()), y + to.lowest, to.elements());
  }

  static void gather(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                     const std::int32_t* index, const float* x, float* y, const Parallel&) {
    OneCall call;
    const std::size_t elements = outer * count * inner;
    const cuda::Gather launched{type,
                                outer,
                                n,
                                inner,
                                count,
                                call.parameters(index, count),
                                call.activations(x, outer * n * inner),
                                call.activations(y, elements)};
    call.finish(cuda::gather(launched, call.launch()), y, elements);
  }

  static void interpolate(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                          std::size_t taps, const std::int32_t* index, const float* weight,
                          const float* x, float* y, const Parallel&) {
    OneCall call;
    const std::size_t elements = outer * count * inner;
    const cuda::Interpolate launched{type,
                                     outer,
                                     n,
                                     inner,
                                     count,
                                     taps,
                                     call.parameters(index, count * taps),
                                     call.parameters(weight, count * taps),
                                     call.activations(x, outer * n * inner),
                                     call.activations(y, elements)};
    call.finish(cuda::interpolate(launched, call.launch()), y, elements);
  }

  static constexpr cpu::Kernels kTable = {"cuda",    nullptr, nullptr, pool,   affine,
                                          unary,     binary,  select,  reduce, softmax,
                                          normalize, nullptr, move,    gather, interpolate};
};

}  // namespace

const cpu::Kernels& cuda_kernels(Type type, bool misaligned) {
  if (type == cuda::kHalf) {
    return misaligned ? Launchers<cuda::kHalf, 1>::kTable : Launchers<cuda::kHalf, 0>::kTable;
  }
  return misaligned ? Launchers<cuda::kFloat, 1>::kTable : Launchers<cuda::kFloat, 0>::kTable;
}

}  // namespace mdprune
