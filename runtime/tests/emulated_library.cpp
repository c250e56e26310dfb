// What tests ask of the emulated device, seen through the library that is loaded at run time.

#include <cuda_runtime.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED std::size_t emulated_used_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  cudaMemGetInfo(&free, &total);
  return total - free;
}

EXPORTED std::size_t emulated_memory_calls() { return mdprune::cuda::emulate::memory_calls(); }

EXPORTED void emulated_fail_memory_call(std::size_t number) {
  mdprune::cuda::emulate::fail_memory_call(number);
}
