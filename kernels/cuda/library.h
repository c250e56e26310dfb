// libmdprune_cuda: the launchers and the few calls of the CUDA runtime that go with them, as one
// table of C functions. libmdprune loads it when a context asks for a GPU, so that it needs no CUDA
// itself. Functions return 0 or a cudaError_t; streams, events and graphs are CUDA's own handles.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace mdprune::cuda {

// Changes with everything that the two libraries share: this table and the structures of kernels.h.
constexpr std::uint32_t kLibraryVersion = 2;

struct DeviceInfo {
  char name[256];
  int major, minor;  // compute capability
  int multiprocessors;
  int driver, runtime;  // versions, 13000 is 13.0
};

struct Library {
  std::uint32_t version;
  std::uint32_t bytes;  // of this table

  const char* (*error_text)(int error);
  int (*device_count)(int* count);
  int (*describe)(int device, DeviceInfo* info);
  int (*current_device)(int* device);
  int (*use_device)(int device);  // by the calling thread

  int (*allocate)(void** memory, std::size_t bytes);
  int (*release)(void* memory);
  int (*to_device)(void* to, const void* from, std::size_t bytes, void* stream);
  int (*to_host)(void* to, const void* from, std::size_t bytes, void* stream);
  int (*clear)(void* memory, std::size_t bytes, void* stream);

  int (*create_stream)(void** stream);
  int (*destroy_stream)(void* stream);
  int (*wait)(void* stream);
  int (*create_event)(void** event);
  int (*destroy_event)(void* event);
  int (*record)(void* event, void* stream);
  int (*wait_event)(void* event);
  int (*elapsed)(float* milliseconds, void* from, void* to);

  // What is launched on the stream in between becomes a graph.
  int (*begin_graph)(void* stream);
  int (*end_graph)(void** graph, void* stream);  // null: nothing was captured
  int (*launch_graph)(void* graph, void* stream);
  int (*destroy_graph)(void* graph);

  // Writes at most `most` of them and returns how many.
  std::size_t (*candidates)(const Convolution&, int multiprocessors, Tiling* tilings,
                            std::size_t most);
  Tiling (*choose)(const Convolution&, int multiprocessors);
  std::size_t (*workspace_bytes)(const Convolution&, Tiling);

  int (*convolution)(const Convolution&, Tiling, const Launch&);
  int (*depthwise)(const Depthwise&, const Launch&);
  int (*pool)(const Pool&, const Launch&);
  int (*affine)(const Affine&, const Launch&);
  int (*unary)(const Unary&, const Launch&);
  int (*binary)(const Binary&, const Launch&);
  int (*select)(const Select&, const Launch&);
  int (*reduce)(const Reduce&, const Launch&);
  int (*softmax)(const Softmax&, const Launch&);
  int (*normalize)(const Normalize&, const Launch&);
  int (*matmul)(const MatMul&, const Launch&);
  int (*move)(const Move&, const Launch&);
  int (*gather)(const Gather&, const Launch&);
  int (*fill)(const Fill&, const Launch&);
  int (*interpolate)(const Interpolate&, const Launch&);
  int (*convert)(const Convert&, const Launch&);
};

}  // namespace mdprune::cuda

// The library's only symbol; null if it is of another version than the caller.
extern "C" const mdprune::cuda::Library* mdprune_cuda_library(std::uint32_t version);
