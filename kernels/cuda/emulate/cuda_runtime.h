// What the kernels and the CUDA backend use of CUDA's runtime, for a host compiler: kernels run as
// fibres (fibres.h) when they are launched, device memory is the heap, and a stream does at once
// what it is given unless it is being captured. Only for tests.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#include "fibres.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return std::uint64_t{a} * b >> 32; }

template <typename T>
T __ldg(const T* address) {
  return *address;
}

template <typename T>
T __ldcg(const T* address) {
  return *address;
}

inline void __syncthreads() { mdprune::cuda::emulate::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffU) {
  mdprune::cuda::emulate::meet_warp(mask, "__syncwarp", nullptr, [](void* const(&)[32]) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Threads run one at a time: nothing comes between the parts of an atomic.
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const unsigned old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}

namespace mdprune::cuda::emulate {

template <typename T>
T shuffle(unsigned mask, const char* what, T value, int source) {
  struct Lane {
    T value, result;
    int source;
  } lane{value, value, source};
  meet_warp(mask, what, &lane, [](void* const(&values)[32]) {
    for (void* const each : values) {
      if (each == nullptr) continue;
      Lane& to = *static_cast<Lane*>(each);
      const void* const from = to.source >= 0 && to.source < 32 ? values[to.source] : nullptr;
      if (from != nullptr) to.result = static_cast<const Lane*>(from)->value;
    }
  });
  return lane.result;
}

inline int lane_number() { return static_cast<int>(thread_number() % 32); }

// The source lane if it is in the same part of `width` lanes, else this one.
inline int in_part(int source, int width) {
  const int lane = lane_number();
  return source >= lane / width * width && source < lane / width * width + width ? source : lane;
}

}  // namespace mdprune::cuda::emulate

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  namespace emulate = mdprune::cuda::emulate;
  const int first = emulate::lane_number() / width * width;
  return emulate::shuffle(mask, "__shfl_sync", value, first + source % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  namespace emulate = mdprune::cuda::emulate;
  const int source = emulate::in_part(emulate::lane_number() ^ bits, width);
  return emulate::shuffle(mask, "__shfl_xor_sync", value, source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
  namespace emulate = mdprune::cuda::emulate;
  const int source = emulate::in_part(emulate::lane_number() + delta, width);
  return emulate::shuffle(mask, "__shfl_down_sync", value, source);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32) {
  namespace emulate = mdprune::cuda::emulate;
  const int source = emulate::in_part(emulate::lane_number() - delta, width);
  return emulate::shuffle(mask, "__shfl_up_sync", value, source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Lane {
    bool predicate;
    unsigned result;
  } lane{predicate != 0, 0};
  mdprune::cuda::emulate::meet_warp(mask, "__ballot_sync", &lane, [](void* const(&values)[32]) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i) {
      if (values[i] != nullptr && static_cast<Lane*>(values[i])->predicate) ballot |= 1U << i;
    }
    for (void* const each : values) {
      if (each != nullptr) static_cast<Lane*>(each)->result = ballot;
    }
  });
  return lane.result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate == 0) == 0;
}

// The runtime's functions; runtime.cpp. Names and numbers are CUDA's.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorIllegalState = 401,
  cudaErrorNotReady = 600,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76
};
struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int major, minor;
  int multiProcessorCount;
  std::size_t sharedMemPerBlock;
  int integrated;
};
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0;

const char* cudaGetErrorString(cudaError_t);
const char* cudaGetErrorName(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
cudaError_t cudaFreeHost(void* memory);
// Refuse a side that the kind says is device memory and is not.
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes,
                            cudaStream_t stream = nullptr);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);

namespace mdprune::cuda::emulate {

// Does it now, or when the graph that the stream is captured into is launched.
cudaError_t enqueue(cudaStream_t stream, const std::function<void()>& work);

// Calls of cudaMalloc, cudaFree and their like so far: a run makes none.
std::size_t memory_calls();
// Lets the call of that number from now on fail, if it allocates; 0: none.
void fail_memory_call(std::size_t number);

// What a kernel launch would refuse, else the launch.
cudaError_t launch(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                   std::function<void()> kernel);

}  // namespace mdprune::cuda::emulate
