#include <cstdint>
#include <limits>

#include "depthwise.cuh"
#include "launch.cuh"

namespace mdprune::cuda {
namespace {

constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

template <typename T, int count>
int launch_kernel(const Depthwise& d, const Launch& launched) {
  DepthwiseArguments a{};
  a.window = window_arguments(d.window, false);
  a.epilogue.y = d.y;
  a.epilogue.scale = d.scale;
  a.epilogue.shift = d.shift;
  a.epilogue.residual = d.residual;
  a.epilogue.filters = a.epilogue.stored = static_cast<std::int32_t>(d.filters);
  a.epilogue.activation = d.activation;
  a.epilogue.vectors = count > 1;
  a.in_channels = static_cast<int>(d.in_channels);
  a.filters = static_cast<int>(d.filters);
  a.multiplier = static_cast<int>(d.filters / d.in_channels);
  a.weight = d.weight;
  a.x = d.x;
  const std::size_t along = (d.window.output[2] + kAlong - 1) / kAlong;
  const std::size_t threads =
      d.batch * d.window.output[0] * d.window.output[1] * along * (d.filters / count);
  const std::size_t blocks = (threads + kDepthwiseThreads - 1) / kDepthwiseThreads;
  if (blocks > kMost) return cudaErrorInvalidValue;
  a.threads = static_cast<long long>(threads);
  return launch(depthwise_kernel<T, count>, static_cast<unsigned>(blocks), kDepthwiseThreads, 0,
                launched.stream, a);
}

}  // namespace

int depthwise(const Depthwise& d, const Launch& launched) {
  for (int axis = 0; axis < 3; ++axis) {
    if (d.window.output[axis] > kMost - kAlong) return cudaErrorInvalidValue;
  }
  if (d.filters > kMost) return cudaErrorInvalidValue;
  return with_type(d.type, [&](auto type) {
    using T = decltype(type);
    constexpr int kCount = 16 / static_cast<int>(sizeof(T));
    const bool runs = d.filters == d.in_channels && d.filters % kCount == 0 && aligned(d.x) &&
                      aligned(d.y) && aligned(d.weight) && aligned(d.residual);
    return runs ? launch_kernel<T, kCount>(d, launched) : launch_kernel<T, 1>(d, launched);
  });
}

}  // namespace mdprune::cuda
