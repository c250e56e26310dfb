// The CUDA kernels of convolution, depthwise and matmul in the emulation, against plain loops in
// double: every tile, splits of the reduction, either order of a block's warps.

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <string>
#include <vector>

#include "cuda/prepare.h"
#include "cuda/tilings.h"
#include "cuda_order.h"
#include "kernel_cases.h"

namespace mdprune {
namespace {

using cpu::Parallel;
using Floats = std::vector<float>;

// What the table of kernels below runs with.
struct Setting {
  cuda::Type type = cuda::kFloat;
  cuda::Tiling tiling = {-1, 1};  // tile -1: what `choose` says
  bool none = false;              // the last convolution has no such tile
};
Setting setting;

std::size_t volume(const std::size_t* sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// Device memory of one call, freed at its end.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (void* const memory : all_) cudaFree(memory);
  }

  void* bytes(const void* host, std::size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count), cudaSuccess);
    all_.push_back(memory);
    if (host != nullptr) {
      EXPECT_EQ(cudaMemcpy(memory, host, count, cudaMemcpyHostToDevice), cudaSuccess);
    }
    return memory;
  }

  template <typename T>
  const T* parameters(const T* host, std::size_t count) {
    return host != nullptr ? static_cast<const T*>(bytes(host, count * sizeof(T))) : nullptr;
  }

  // In the type of the setting; null stays null.
  void* values(const float* host, std::size_t count) {
    if (host == nullptr) return nullptr;
    if (setting.type == cuda::kFloat) return bytes(host, count * sizeof(float));
    std::vector<__half> halves;
    for (std::size_t i = 0; i < count; ++i) halves.push_back(__float2half(host[i]));
    return bytes(halves.data(), count * sizeof(__half));
  }

  static void read(float* host, const void* device, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      host[i] = setting.type == cuda::kFloat ? static_cast<const float*>(device)[i]
                                             : __half2float(static_cast<const __half*>(device)[i]);
    }
  }

 private:
  std::list<void*> all_;
};

std::vector<const void*> upload_weights(const cpu::Convolution& c, Memory& memory) {
  const std::size_t taps = volume(c.window.kernel);
  std::vector<const void*> weights;
  if (c.packed != nullptr) {
    const std::size_t blocks = (c.filters / c.groups + 15) / 16;
    weights.push_back(memory.values(c.packed, c.groups * blocks * 16 * taps * c.reduction));
  }
  for (std::size_t s = 0; s < c.slab_count; ++s) {
    const cpu::Slab& slab = c.slabs[s];
    weights.push_back(memory.values(slab.data, taps * slab.rows * slab.filters));
  }
  return weights;
}

void convolution(const cpu::Convolution& c, const Parallel&) {
  Memory memory;
  const auto weights = upload_weights(c, memory);
  const auto tables = cuda::prepare(c, setting.type, weights.data());
  const void* const on_device = memory.bytes(tables.bytes.data(), tables.bytes.size());
  cuda::Convolution call = cuda::bind(c, setting.type, tables, on_device);
  const std::size_t positions = c.batch * volume(c.window.output);
  const std::size_t outputs = positions * c.filters;
  call.x = memory.values(c.x, c.batch * volume(c.window.input) * c.in_channels);
  call.y = memory.values(c.y, outputs);
  call.scale = memory.parameters(c.scale, c.filters);
  call.shift = memory.parameters(c.shift, c.filters);
  call.residual_index = memory.parameters(c.residual_index, c.filters);
  call.residual =
      c.residual == c.y ? call.y : memory.values(c.residual, positions * c.residual_channels);
  call.y2 = memory.values(c.y2, outputs);
  call.scale2 = memory.parameters(c.scale2, c.filters);
  call.shift2 = memory.parameters(c.shift2, c.filters);

  const cuda::Tiling tiling = setting.tiling.tile < 0 ? cuda::choose(call, 4) : setting.tiling;
  setting.none = cuda::find_tile(call, tiling) == nullptr;
  if (setting.none) return;
  const std::size_t bytes = cuda::workspace_bytes(call, tiling);
  void* const workspace = memory.bytes(nullptr, bytes);
  ASSERT_EQ(cudaMemset(workspace, 0, cuda::kCounterBytes), cudaSuccess);
  ASSERT_EQ(cuda::convolution(call, tiling, {nullptr, 4, workspace, bytes}), 0);
  const auto* const counters = static_cast<const unsigned*>(workspace);
  for (std::size_t i = 0; i < cuda::kCounterBytes / 4; ++i) ASSERT_EQ(counters[i], 0U);
  Memory::read(c.y, call.y, outputs);
  if (c.y2 != nullptr) Memory::read(c.y2, call.y2, outputs);
  // Readers multiply what is behind the last filter by zeros: it must be finite.
  for (const float* y : {c.y, c.y2}) {
    for (std::size_t i = 0; y != nullptr && i < outputs; ++i) {
      if (i % c.filters >= c.stored_filters) {
        ASSERT_EQ(y[i], 0.0F);
      }
    }
  }
}

void depthwise(const cpu::Depthwise& d, const Parallel&) {
  Memory memory;
  const std::size_t outputs = d.batch * volume(d.window.output) * d.filters;
  cuda::Depthwise call{};
  call.type = setting.type;
  call.batch = d.batch;
  call.window = d.window;
  call.in_channels = d.in_channels;
  call.filters = d.filters;
  call.weight = memory.values(d.weight, volume(d.window.kernel) * d.filters);
  call.x = memory.values(d.x, d.batch * volume(d.window.input) * d.in_channels);
  call.y = memory.values(d.y, outputs);
  call.scale = memory.parameters(d.scale, d.filters);
  call.shift = memory.parameters(d.shift, d.filters);
  call.residual = d.residual != nullptr ? call.y : nullptr;
  call.activation = d.activation;
  ASSERT_EQ(cuda::depthwise(call, {}), 0);
  Memory::read(d.y, call.y, outputs);
}

// As the second of two matrices whose factors lie in the other order.
void matmul(std::size_t m, std::size_t k, std::size_t n, const float* a, const float* b, float* y,
            const Parallel&) {
  Memory memory;
  std::vector<float> as(2 * m * k, 1.0F), bs(2 * k * n, 1.0F), ys(2 * m * n);
  std::copy_n(a, m * k, as.begin());
  std::copy_n(b, k * n, bs.begin() + static_cast<std::ptrdiff_t>(k * n));
  const std::int64_t swapped[2] = {static_cast<std::int64_t>(m * k), 0};
  cuda::MatMul call{setting.type, 2, m, k, n, {}, {}, {}, {}, {}};
  call.a = memory.values(as.data(), as.size());
  call.b = memory.values(bs.data(), bs.size());
  call.y = memory.bytes(nullptr, ys.size() * cuda::size_of(setting.type));
  call.a_offset = memory.parameters(swapped, 2);
  ASSERT_EQ(cuda::matmul(call, {}), 0);
  Memory::read(ys.data(), call.y, ys.size());
  std::copy_n(ys.begin() + static_cast<std::ptrdiff_t>(m * n), m * n, y);
}

cpu::Kernels cuda_products() {
  cpu::Kernels kernels{};
  kernels.name = "cuda";
  kernels.convolution = convolution;
  kernels.depthwise = depthwise;
  kernels.matmul = matmul;
  return kernels;
}

class CudaProductsTest : public testing::TestWithParam<cuda::Type> {
 protected:
  void SetUp() override { setting = {GetParam(), {-1, 1}, false}; }
  void TearDown() override { reverse_warps(false); }

  bool half() const { return GetParam() == cuda::kHalf; }
  // Of the largest value; half keeps 11 binary digits of what is written.
  double tolerance() const { return half() ? 5e-3 : 1e-5; }
  std::vector<KernelCase> cases(const std::string& kind) const {
    std::vector<KernelCase> chosen;
    for (const KernelCase& c : kernel_cases(half())) {
      if (c.name.rfind(kind, 0) == 0) chosen.push_back(c);
    }
    return chosen;
  }

  const cpu::Kernels kernels_ = cuda_products();
  const cpu::Kernels& reference_ = *cpu::find_kernels("reference");
};

// Too many products for every tile in turn.
bool is_large(const std::string& name) {
  for (const char* each : {"deep", "linear", "many_taps"}) {
    if (name.find(each) != std::string::npos) return true;
  }
  return false;
}

TEST_P(CudaProductsTest, ConvolutionEqualsTheReference) {
  constexpr int kTiles = 5;
  int turn = 0;
  for (const KernelCase& c : cases("convolution_")) {
    if (half() && c.name == "convolution_activation_14") continue;  // exp leaves half's range
    const Floats r = c.run(reference_, {});
    setting.tiling = {-1, 1};
    EXPECT_LE(difference(c.run(kernels_, {}), r), tolerance()) << c.name;
    if (is_large(c.name)) continue;
    // The cases of runs, which every kernel takes, on all of them; others on one or two in turn.
    const bool all = c.name.find("runs") != std::string::npos;
    for (int tile = 0; tile < kTiles; ++tile) {
      for (const int splits : {1, 3}) {
        if (!all && tile != (turn + splits) % kTiles) continue;
        setting.tiling = {tile, splits};
        reverse_warps(splits == 3);
        const Floats y = c.run(kernels_, {});
        reverse_warps(false);
        if (setting.none) continue;
        EXPECT_LE(difference(y, r), tolerance())
            << c.name << ", tile " << tile << ", splits " << splits;
      }
    }
    ++turn;
  }
}

TEST_P(CudaProductsTest, SplitsGiveTheSameBitsWhicheverBlockIsLast) {
  for (const KernelCase& c : cases("convolution_runs_")) {
    setting.tiling = {half() ? 3 : 1, 5};
    const Floats a = c.run(kernels_, {});
    reverse_warps(true);
    const Floats b = c.run(kernels_, {});
    reverse_warps(false);
    ASSERT_FALSE(setting.none);
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << c.name;
  }
}

TEST_P(CudaProductsTest, DepthwiseEqualsTheReference) {
  for (const KernelCase& c : cases("depthwise_")) {
    EXPECT_LE(difference(c.run(kernels_, {}), c.run(reference_, {})), tolerance()) << c.name;
  }
}

TEST_P(CudaProductsTest, MatMulEqualsTheReference) {
  for (const KernelCase& c : cases("matmul_")) {
    EXPECT_LE(difference(c.run(kernels_, {}), c.run(reference_, {})), tolerance()) << c.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaProductsTest, testing::Values(cuda::kFloat, cuda::kHalf),
                         [](const auto& info) {
                           return std::string(info.param == cuda::kHalf ? "half" : "float");
                         });

// A pointwise or 3 x 3 convolution of `size` x `size` pixels and as many channels as filters.
cuda::Convolution square(std::size_t size, std::size_t channels, std::size_t kernel) {
  cuda::Convolution c{};
  c.type = cuda::kHalf;
  c.batch = c.groups = 1;
  c.window = {{1, size, size}, {1, size, size}, {1, kernel, kernel},
              {1, 1, 1},       {1, 1, 1},       {0, kernel / 2, kernel / 2}};
  c.in_channels = c.filters = c.reduction = channels;
  c.chunks = channels / 8;
  c.x_runs = c.w_runs = true;
  return c;
}

TEST(CudaTilingsTest, SplitsWhatDoesNotFillTheDevice) {
  EXPECT_GT(cuda::choose(square(7, 256, 3), 16).splits, 1);
  EXPECT_GT(cuda::choose(square(14, 128, 3), 132).splits, 1);
  EXPECT_EQ(cuda::choose(square(112, 64, 1), 16).splits, 1);
  EXPECT_LE(cuda::choose(square(112, 256, 3), 16).tile, 1);  // the large ones
  cuda::Convolution elements = square(112, 256, 3);
  elements.x_runs = false;
  EXPECT_GE(cuda::choose(elements, 16).tile, 2);
}

TEST(CudaTilingsTest, CandidatesBeginWithTheChosen) {
  for (const std::size_t size : {1, 7, 14, 56}) {
    const cuda::Convolution c = square(size, 64, 3);
    const auto tilings = cuda::candidates(c, 16);
    ASSERT_FALSE(tilings.empty());
    EXPECT_EQ(tilings[0].tile, cuda::choose(c, 16).tile);
    EXPECT_EQ(tilings[0].splits, cuda::choose(c, 16).splits);
    for (const cuda::Tiling tiling : tilings) EXPECT_NE(cuda::find_tile(c, tiling), nullptr);
  }
}

TEST(CudaConvolutionTest, RefusesWhatItCannotRun) {
  alignas(16) unsigned char memory[32] = {};
  cuda::Convolution c = square(7, 64, 3);
  c.x = memory;
  EXPECT_EQ(cuda::convolution(c, {5, 1}, {}), cudaErrorInvalidValue);  // no such tile
  EXPECT_EQ(cuda::convolution(c, {2, 0}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::convolution(c, {2, 2}, {nullptr, 4, memory, 16}), cudaErrorInvalidValue);
  const cuda::Launch enough{nullptr, 4, memory, std::size_t{1} << 30};
  c.x = memory + 2;
  EXPECT_EQ(cuda::convolution(c, {2, 1}, enough), cudaErrorInvalidValue);
  c.x = memory;
  c.batch = std::size_t{1} << 31;
  EXPECT_EQ(cuda::convolution(c, {2, 1}, enough), cudaErrorInvalidValue);
}

TEST(CudaPrepareTest, FindsRuns) {
  const std::vector<std::int32_t> runs = {8, 9, 10, 11, 12, 13, 14, 15, 40, 41, 42, 43};
  const std::uint32_t bits = 0x00ff00ffU;
  const cpu::Slab slab{nullptr, 12, 32, &bits, nullptr, 12};
  cpu::Convolution c{};
  c.window = {{1, 1, 5}, {1, 1, 5}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  c.batch = c.groups = 1;
  c.in_channels = 48;
  c.filters = c.stored_filters = 16;
  c.reduction = 12;
  c.index = runs.data();
  c.slabs = &slab;
  c.slab_count = 1;
  alignas(16) static const unsigned char weight[32] = {};
  const void* address = weight;
  const auto half = cuda::prepare(c, cuda::kHalf, &address);
  EXPECT_TRUE(half.x_runs);
  EXPECT_TRUE(half.w_runs);
  EXPECT_EQ(half.reduction, 16U);  // four rows of zeros
  EXPECT_EQ(half.chunks, 2U);
  EXPECT_EQ(cuda::prepare(c, cuda::kFloat, &address).reduction, 12U);
  c.in_channels = 47;  // pixels of x begin anywhere
  EXPECT_FALSE(cuda::prepare(c, cuda::kHalf, &address).x_runs);
  address = weight + 2;
  EXPECT_FALSE(cuda::prepare(c, cuda::kHalf, &address).w_runs);
  const cpu::Slab huge{nullptr, std::size_t{1} << 20, std::size_t{1} << 12, nullptr, nullptr, 12};
  c.slabs = &huge;
  EXPECT_TRUE(cuda::prepare(c, cuda::kHalf, &address).bytes.empty());
}

}  // namespace
}  // namespace mdprune
