#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

using Work = std::vector<std::function<void()>>;

struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUstream_st {
  std::unique_ptr<CUgraph_st> captured;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace {

using mdprune::cuda::emulate::enqueue;

constexpr std::size_t kMemoryBytes = std::size_t{8} << 30;
constexpr std::size_t kSharedBytes = 64 << 10;  // the least that a device has, sm_75

std::mutex memory_lock;
std::map<const char*, std::size_t> device_memory;
std::size_t used_bytes = 0;
std::size_t calls = 0;
std::size_t failing_call = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool on_device(const void* memory, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(memory_lock);
  const char* const begin = static_cast<const char*>(memory);
  auto block = device_memory.upper_bound(begin);
  if (block == device_memory.begin()) return false;
  --block;
  return begin + bytes <= block->first + block->second;
}

template <typename T, typename... Arguments>
cudaError_t create(T** made, Arguments... arguments) {
  *made = new (std::nothrow) T{arguments...};
  return result(*made != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

template <typename T>
cudaError_t destroy(T* made) {
  delete made;
  return cudaSuccess;
}

}  // namespace

namespace mdprune::cuda::emulate {

cudaError_t enqueue(cudaStream_t stream, const std::function<void()>& work) {
  if (stream != nullptr && stream->captured != nullptr) {
    stream->captured->work.push_back(work);
  } else {
    work();
  }
  return cudaSuccess;
}

std::size_t memory_calls() {
  const std::lock_guard<std::mutex> lock(memory_lock);
  return calls;
}

void fail_memory_call(std::size_t number) {
  const std::lock_guard<std::mutex> lock(memory_lock);
  failing_call = number == 0 ? 0 : calls + number;
}

cudaError_t launch(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                   std::function<void()> kernel) {
  const auto within = [](dim3 size, unsigned x, unsigned y, unsigned z) {
    return size.x > 0 && size.y > 0 && size.z > 0 && size.x <= x && size.y <= y && size.z <= z;
  };
  const bool valid = within(grid, 0x7fffffff, 65535, 65535) && within(block, 1024, 1024, 64) &&
                     block.x * block.y * block.z <= 1024 && shared <= kSharedBytes;
  if (!valid) return result(cudaErrorInvalidConfiguration);
  return enqueue(stream, [=] { run(grid, block, shared, kernel); });
}

}  // namespace mdprune::cuda::emulate

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    default: return "cudaErrorNotReady";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {"emulated", kMemoryBytes, 8, 7, 16, kSharedBytes, 1};
  return cudaSetDevice(device);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 16
           : attribute == cudaDevAttrComputeCapabilityMajor ? 8
                                                            : 7;
  return cudaSetDevice(device);
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const std::lock_guard<std::mutex> lock(memory_lock);
  *total = kMemoryBytes;
  *free = kMemoryBytes - used_bytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(memory_lock);
  ++calls;
  if (calls == failing_call || bytes > kMemoryBytes - used_bytes)
    return result(cudaErrorMemoryAllocation);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return result(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xff, bytes);  // NaN: what is read before it is written shows
  device_memory[static_cast<const char*>(*memory)] = bytes;
  used_bytes += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(memory_lock);
  ++calls;
  const auto block = device_memory.find(static_cast<const char*>(memory));
  if (block == device_memory.end()) return result(cudaErrorInvalidValue);
  used_bytes -= block->second;
  device_memory.erase(block);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(memory_lock);
  ++calls;
  *memory = std::malloc(bytes);
  return result(*memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const bool reads = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool writes = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if ((reads && !on_device(from, bytes)) || (writes && !on_device(to, bytes))) {
    return result(cudaErrorInvalidValue);
  }
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  if (!on_device(memory, bytes)) return result(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memset(memory, value, bytes); });
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return create(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return destroy(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const bool captured = stream != nullptr && stream->captured != nullptr;
  return result(captured ? cudaErrorIllegalState : cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool captured = stream != nullptr && stream->captured != nullptr;
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->captured != nullptr) return result(cudaErrorIllegalState);
  stream->captured = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->captured == nullptr) return result(cudaErrorIllegalState);
  *graph = stream->captured.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  return create(executable, graph->work);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return destroy(graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return destroy(executable); }

cudaError_t cudaEventCreate(cudaEvent_t* event) { return create(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return create(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroy(event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return enqueue(stream, [=] { event->time = std::chrono::steady_clock::now(); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}
