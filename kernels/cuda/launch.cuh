// Launches a kernel with nvcc, or its emulation with a host compiler: `<<<>>>` is not C++.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <tuple>

namespace mdprune::cuda {

// Returns the cudaError_t of the launch.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, void* stream,
           Arguments... arguments) {
  std::tuple<Parameters...> values(arguments...);
#if defined(__CUDACC__)
  return std::apply(
      [&](Parameters&... each) {
        void* pointers[] = {&each...};
        const auto* const function = reinterpret_cast<const void*>(kernel);
        if (shared > std::size_t{48} << 10) {  // as much as every device has has to be asked for
          const cudaError_t error = cudaFuncSetAttribute(
              function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
          if (error != cudaSuccess) return static_cast<int>(error);
        }
        return static_cast<int>(cudaLaunchKernel(function, grid, block, pointers, shared,
                                                 static_cast<cudaStream_t>(stream)));
      },
      values);
#else
  return emulate::launch(grid, block, shared, static_cast<cudaStream_t>(stream),
                         [kernel, values] { std::apply(kernel, values); });
#endif
}

}  // namespace mdprune::cuda
