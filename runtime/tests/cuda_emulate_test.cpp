// What the emulation of CUDA promises: kernels that are tested with it rely on this.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/types.cuh"

namespace mdprune::cuda {
namespace {

template <typename T>
struct Device {
  explicit Device(std::size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count * sizeof(T)), cudaSuccess);
    data = static_cast<T*>(memory);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { cudaFree(data); }
  T* data;
};

__global__ void sum_of_blocks(const float* x, float* y, unsigned* blocks, int n) {
  MDPRUNE_DYNAMIC_SHARED(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  shared[threadIdx.x] = i < n ? x[i] : 0.0F;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  float sum = 0.0F;
  for (unsigned j = threadIdx.x; j < blockDim.x; j += 32) sum += shared[j];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffU, sum, step);
  if (threadIdx.x == 0) {
    y[blockIdx.x] = sum;
    atomicAdd(blocks, 1U);
  }
}

TEST(CudaEmulateTest, RunsThreadsThatWaitForEachOther) {
  constexpr int kCount = 1000;
  std::vector<float> x(kCount);
  for (int i = 0; i < kCount; ++i) x[std::size_t(i)] = static_cast<float>(i);
  const Device<float> on_device(kCount), sums(8);
  const Device<unsigned> blocks(1);
  ASSERT_EQ(cudaMemset(blocks.data, 0, 4), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(on_device.data, x.data(), kCount * 4, cudaMemcpyHostToDevice), cudaSuccess);
  for (const bool reversed : {false, true}) {
    emulate::reversed = reversed;
    ASSERT_EQ(
        launch(sum_of_blocks, 8, 128, 512, nullptr, on_device.data, sums.data, blocks.data, kCount),
        0);
    float total = 0.0F;
    for (int i = 0; i < 8; ++i) total += sums.data[i];
    EXPECT_EQ(total, 499500.0F);
  }
  emulate::reversed = false;
  EXPECT_EQ(*blocks.data, 16U);
}

TEST(CudaEmulateTest, RefusesWhatADeviceRefuses) {
  const Device<float> x(1), y(1);
  unsigned blocks = 0;
  EXPECT_EQ(launch(sum_of_blocks, 1, 1025, 0, nullptr, x.data, y.data, &blocks, 0),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(sum_of_blocks, 0, 32, 0, nullptr, x.data, y.data, &blocks, 0),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(sum_of_blocks, 1, 32, 70000, nullptr, x.data, y.data, &blocks, 0),
            cudaErrorInvalidConfiguration);
  float host = 0.0F;
  EXPECT_EQ(cudaMemcpy(&host, &host, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
}

TEST(CudaEmulateTest, LaunchesWhatWasCaptured) {
  const Device<float> x(32), y(1);
  const Device<unsigned> blocks(1);
  *blocks.data = 0;
  for (int i = 0; i < 32; ++i) x.data[i] = 1.0F;
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  launch(sum_of_blocks, 1, 32, 128, stream, x.data, y.data, blocks.data, 32);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalState);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(*blocks.data, 0U);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  cudaGraphLaunch(executable, stream);
  cudaGraphLaunch(executable, stream);
  EXPECT_EQ(*blocks.data, 2U);
  EXPECT_EQ(*y.data, 32.0F);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 16) __syncwarp();
  __shfl_xor_sync(0xffffffffU, 1, 1);
}

TEST(CudaEmulateDeathTest, ReportsLanesThatDoNotMeet) {
  EXPECT_DEATH(launch(divergent_barrier, 1, 32, 0, nullptr), "lanes meet at two instructions");
}

__global__ void copies(const float* x, float* y) {
  __shared__ __align__(16) float buffer[2][4];
  copy_async(buffer[0], x, 16);
  commit_copies();
  copy_async(buffer[1], x + 4, 8);
  commit_copies();
  wait_copies<1>();
  for (int i = 0; i < 4; ++i) y[i] = buffer[0][i];
  for (int i = 0; i < 4; ++i) y[4 + i] = buffer[1][i];
  wait_copies<0>();
  for (int i = 0; i < 4; ++i) y[8 + i] = buffer[1][i];
}

TEST(CudaEmulateTest, CopiesWhenTheyAreWaitedFor) {
  const Device<float> x(8), y(12);
  for (int i = 0; i < 8; ++i) x.data[i] = static_cast<float>(i + 1);
  ASSERT_EQ(launch(copies, 1, 1, 0, nullptr, x.data, y.data), 0);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(y.data[i], static_cast<float>(i + 1));
    EXPECT_TRUE(std::isnan(y.data[4 + i]));
    EXPECT_EQ(y.data[8 + i], i < 2 ? static_cast<float>(i + 5) : 0.0F);
  }
}

// y (16 x 16) = a (16 x 16) b (16 x 16), row-major halves, by one warp.
__global__ void product(const Half* a, const Half* b, float* y) {
  __shared__ __align__(16) Half shared_a[16][16];
  __shared__ __align__(16) Half shared_b[16][16];
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) {
    shared_a[i / 16][i % 16] = a[i];
    shared_b[i / 16][i % 16] = b[i];
  }
  __syncwarp();
  unsigned left[4], right[4];
  load_matrices(left, &shared_a[lane % 16][lane / 16 * 8]);
  load_matrices_transposed(right, &shared_b[lane % 16][lane / 16 * 8]);
  for (unsigned n = 0; n < 2; ++n) {
    float sums[4] = {};
    multiply(sums, left, right[2 * n], right[2 * n + 1]);
    for (unsigned e = 0; e < 4; ++e) {
      y[(lane / 4 + e / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + e % 2] = sums[e];
    }
  }
}

TEST(CudaEmulateTest, MultipliesMatrices) {
  const Device<Half> a(256), b(256);
  const Device<float> y(256);
  for (int i = 0; i < 256; ++i) {
    a.data[i] = __float2half(static_cast<float>(i * 7 % 31 - 15));
    b.data[i] = __float2half(static_cast<float>(i * 5 % 29 - 14));
  }
  ASSERT_EQ(launch(product, 1, 32, 0, nullptr, a.data, b.data, y.data), 0);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      float sum = 0.0F;
      for (int k = 0; k < 16; ++k) {
        sum += __half2float(a.data[i * 16 + k]) * __half2float(b.data[k * 16 + j]);
      }
      EXPECT_EQ(y.data[i * 16 + j], sum) << i << " " << j;
    }
  }
}

TEST(CudaEmulateTest, RoundsToHalf) {
  for (unsigned bits = 0; bits < 0x7c00; ++bits) {
    const float value = __half2float({static_cast<std::uint16_t>(bits)});
    ASSERT_EQ(__float2half(value).bits, bits);
    ASSERT_EQ(__float2half(-value).bits, bits | 0x8000U);
    // The middle between neighbours goes to the even one; 65520 is infinite.
    const float above = bits == 0x7bff ? 65536.0F : __half2float({std::uint16_t(bits + 1)});
    const float middle = (value + above) / 2;
    ASSERT_EQ(__float2half(middle).bits, bits + (bits & 1U));
    ASSERT_EQ(__float2half(std::nextafter(middle, 0.0F)).bits, bits);
    ASSERT_EQ(__float2half(std::nextafter(middle, 1e9F)).bits, bits + 1);
  }
  EXPECT_EQ(__half2float({0x0001}), std::ldexp(1.0F, -24));
  EXPECT_EQ(__half2float({0x7bff}), 65504.0F);
  EXPECT_EQ(__half2float({0xfc00}), -HUGE_VALF);
  EXPECT_TRUE(std::isnan(__half2float(__float2half(NAN))));
}

}  // namespace
}  // namespace mdprune::cuda
