#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "library.h"

namespace mdprune::cuda {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }
cudaGraphExec_t graph_of(void* graph) { return static_cast<cudaGraphExec_t>(graph); }

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int device_count(int* count) { return cudaGetDeviceCount(count); }

int describe(int device, DeviceInfo* info) {
  cudaDeviceProp properties;
  if (const int error = cudaGetDeviceProperties(&properties, device)) return error;
  std::snprintf(info->name, sizeof(info->name), "%s", properties.name);
  info->major = properties.major;
  info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  if (const int error = cudaDriverGetVersion(&info->driver)) return error;
  return cudaRuntimeGetVersion(&info->runtime);
}

int current_device(int* device) { return cudaGetDevice(device); }

int use_device(int device) { return cudaSetDevice(device); }

int allocate(void** memory, std::size_t bytes) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  if (error != cudaSuccess) cudaGetLastError();  // or the next launch would report it
  return error;
}

int release(void* memory) { return cudaFree(memory); }

int to_device(void* to, const void* from, std::size_t bytes, void* stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(stream));
}

int to_host(void* to, const void* from, std::size_t bytes, void* stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream));
}

int clear(void* memory, std::size_t bytes, void* stream) {
  return cudaMemsetAsync(memory, 0, bytes, stream_of(stream));
}

int create_stream(void** stream) {
  cudaStream_t made = nullptr;
  const int error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  *stream = made;
  return error;
}

int destroy_stream(void* stream) { return cudaStreamDestroy(stream_of(stream)); }

int wait(void* stream) { return cudaStreamSynchronize(stream_of(stream)); }

int create_event(void** event) {
  cudaEvent_t made = nullptr;
  const int error = cudaEventCreate(&made);
  *event = made;
  return error;
}

int destroy_event(void* event) { return cudaEventDestroy(event_of(event)); }

int record(void* event, void* stream) {
  return cudaEventRecord(event_of(event), stream_of(stream));
}

int wait_event(void* event) { return cudaEventSynchronize(event_of(event)); }

int elapsed(float* milliseconds, void* from, void* to) {
  return cudaEventElapsedTime(milliseconds, event_of(from), event_of(to));
}

int begin_graph(void* stream) {
  return cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal);
}

int end_graph(void** graph, void* stream) {
  *graph = nullptr;
  cudaGraph_t captured = nullptr;
  if (const int error = cudaStreamEndCapture(stream_of(stream), &captured)) return error;
  cudaGraphExec_t made = nullptr;
  const int error = cudaGraphInstantiate(&made, captured, 0);
  cudaGraphDestroy(captured);
  *graph = made;
  return error;
}

int launch_graph(void* graph, void* stream) {
  return cudaGraphLaunch(graph_of(graph), stream_of(stream));
}

int destroy_graph(void* graph) { return cudaGraphExecDestroy(graph_of(graph)); }

std::size_t copy_candidates(const Convolution& convolution, int multiprocessors, Tiling* tilings,
                            std::size_t most) {
  const auto found = candidates(convolution, multiprocessors);
  const std::size_t count = std::min(most, found.size());
  std::copy_n(found.begin(), count, tilings);
  return count;
}

constexpr Library kLibrary = {
    kLibraryVersion,
    sizeof(Library),
    error_text,
    device_count,
    describe,
    current_device,
    use_device,
    allocate,
    release,
    to_device,
    to_host,
    clear,
    create_stream,
    destroy_stream,
    wait,
    create_event,
    destroy_event,
    record,
    wait_event,
    elapsed,
    begin_graph,
    end_graph,
    launch_graph,
    destroy_graph,
    copy_candidates,
    choose,
    workspace_bytes,
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
    fill,
    interpolate,
    convert,
};

}  // namespace
}  // namespace mdprune::cuda

extern "C" __attribute__((visibility("default"))) const mdprune::cuda::Library*
mdprune_cuda_library(std::uint32_t version) {
  return version == mdprune::cuda::kLibraryVersion ? &mdprune::cuda::kLibrary : nullptr;
}
