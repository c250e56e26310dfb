// The CUDA kernels of all operators but the products, in the emulation, against plain loops in
// double.

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cuda_kernels.h"
#include "cuda_order.h"
#include "kernel_cases.h"

namespace mdprune {
namespace {

using Floats = std::vector<float>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Storage {
  cuda::Type type;
  bool misaligned;
};

class CudaOperatorsTest : public testing::TestWithParam<Storage> {
 protected:
  void TearDown() override { reverse_warps(false); }
  bool half() const { return GetParam().type == cuda::kHalf; }
  // Of the largest value: half keeps 11 binary digits of what is written.
  double tolerance(double of_float) const { return half() ? 5e-4 : of_float; }

  Floats unary(Floats values, std::uint32_t code, float a = 0, float b = 0) const {
    kernels_.unary(values.size(), values.data(), values.data(), {code, a, b}, {});
    return values;
  }
  float reduce(std::uint32_t kind, const Floats& values) const {
    float result = 0;
    kernels_.reduce(kind, 1, values.size(), 1, values.data(), &result, {});
    return result;
  }

  const cpu::Kernels& kernels_ = cuda_kernels(GetParam().type, GetParam().misaligned);
  const cpu::Kernels& reference_ = *cpu::find_kernels("reference");
};

bool is_product(const std::string& name) {
  for (const char* operation : {"convolution_", "depthwise_", "matmul_"}) {
    if (name.rfind(operation, 0) == 0) return true;
  }
  return false;
}

TEST_P(CudaOperatorsTest, EqualsTheReference) {
  for (const KernelCase& c : kernel_cases(half())) {
    if (is_product(c.name)) continue;
    if (half() && c.name == "reduce_4_1_70_5") continue;  // products below what half has
    const auto r = c.run(reference_, {});
    EXPECT_LE(difference(c.run(kernels_, {}), r), tolerance(c.tolerance)) << c.name;
    reverse_warps(true);
    EXPECT_LE(difference(c.run(kernels_, {}), r), tolerance(c.tolerance)) << c.name;
    reverse_warps(false);
  }
}

TEST_P(CudaOperatorsTest, KeepsNaN) {
  for (std::uint32_t code = 0; code < cpu::kActivationCodes; ++code) {
    if (code == cpu::kNot || code == cpu::kThresholdedRelu) continue;  // of comparisons
    EXPECT_TRUE(std::isnan(unary({1.0F, kNan, 2.0F}, code, 0.3F, 0.6F)[1])) << code;
  }
  EXPECT_EQ(unary({kNan}, cpu::kNot)[0], 0.0F);
  EXPECT_EQ(unary({kNan}, cpu::kThresholdedRelu, 0.3F)[0], 0.0F);
  for (std::uint32_t kind = 0; kind < cpu::kReduceKinds; ++kind) {
    Floats values(700, 0.5F);
    values[331] = kNan;
    EXPECT_TRUE(std::isnan(reduce(kind, values))) << kind;
  }
}

TEST_P(CudaOperatorsTest, TakesInfinities) {
  EXPECT_EQ(unary({-kInfinity, kInfinity}, cpu::kRelu), (Floats{0.0F, kInfinity}));
  EXPECT_EQ(unary({-kInfinity, kInfinity}, cpu::kClip, -1, 6), (Floats{-1.0F, 6.0F}));
  EXPECT_EQ(unary({-kInfinity, kInfinity}, cpu::kSigmoid), (Floats{0.0F, 1.0F}));
  EXPECT_EQ(unary({-kInfinity, kInfinity}, cpu::kTanh), (Floats{-1.0F, 1.0F}));
  EXPECT_EQ(unary({-kInfinity, kInfinity}, cpu::kSoftplus), (Floats{0.0F, kInfinity}));
  EXPECT_EQ(unary({-kInfinity, kInfinity}, cpu::kElu, 2), (Floats{-2.0F, kInfinity}));
  EXPECT_EQ(reduce(cpu::kMax, {1.0F, kInfinity}), kInfinity);
  const std::uint32_t log_sum = cpu::kLogOfSumOfExponentials;
  EXPECT_EQ(reduce(log_sum, {-kInfinity, -kInfinity}), -kInfinity);
  EXPECT_EQ(reduce(log_sum, {-kInfinity, 2.0F, -kInfinity}), 2.0F);
  EXPECT_EQ(reduce(log_sum, {-300.0F, -kInfinity}), -300.0F);
  EXPECT_EQ(reduce(log_sum, {kInfinity, 2.0F}), kInfinity);
}

TEST_P(CudaOperatorsTest, RoundsHalvesToEven) {
  EXPECT_EQ(unary({0.5F, 1.5F, 2.5F, -0.5F, -1.5F}, cpu::kRound),
            (Floats{0.0F, 2.0F, 2.0F, -0.0F, -2.0F}));
}

TEST_P(CudaOperatorsTest, TakesTheSignOfTheDivisor) {
  const Floats a = {5, -5, 5, -5, 6}, b = {3, 3, -3, -3, -3};
  const std::size_t size = 5, stride = 1;
  Floats y(5);
  kernels_.binary(cpu::kModulo, 1, &size, &stride, &stride, a.data(), b.data(), y.data(), {}, {});
  EXPECT_EQ(y, (Floats{2, 1, -1, -2, 0}));
}

TEST_P(CudaOperatorsTest, WorksInPlace) {
  const std::size_t rows = 70, n = 24;
  Floats x(rows * n), scale(n);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 97) / 32 - 1;
  for (std::size_t c = 0; c < n; ++c) scale[c] = static_cast<float>(c) / 8 - 1;
  Floats r = x, y = x;
  reference_.affine(rows, n, n, r.data(), r.data(), nullptr, scale.data(), nullptr, {}, {});
  kernels_.affine(rows, n, n, y.data(), y.data(), nullptr, scale.data(), nullptr, {}, {});
  EXPECT_LE(difference(y, r), tolerance(2e-7));
  const std::size_t size[] = {rows, n}, all[] = {n, 1}, column[] = {0, 1};
  r = y;
  for (float* const at : {r.data(), y.data()}) {
    (at == r.data() ? reference_ : kernels_)
        .binary(cpu::kSubtract, 2, size, column, all, scale.data(), at, at, {}, {});
  }
  EXPECT_LE(difference(y, r), tolerance(2e-7));
}

TEST_P(CudaOperatorsTest, PoolsTheWholeInput) {
  const cpu::Window window = {{2, 5, 7}, {1, 1, 1}, {2, 5, 7}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  for (const std::size_t channels : {3, 40}) {
    Floats x(2 * 70 * channels);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) / 64;
    for (std::uint32_t kind = 0; kind < cpu::kPoolKinds; ++kind) {
      Floats y(2 * channels), r(2 * channels);
      kernels_.pool({2, window, channels, kind, x.data(), y.data()}, {});
      reference_.pool({2, window, channels, kind, x.data(), r.data()}, {});
      EXPECT_LE(difference(y, r), tolerance(1e-6)) << kind;
    }
  }
}

TEST_P(CudaOperatorsTest, TransposesMoreTilesThanBlocks) {
  // (3, 600, 90) to (3, 90, 600): more tiles than a grid has blocks.
  const std::size_t size[] = {3, 90, 600};
  const std::ptrdiff_t from[] = {54000, 1, 90}, to[] = {54000, 600, 1};
  Floats x(162000), y(162000), r(162000);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 2039);
  kernels_.move(3, size, from, to, x.data(), y.data(), {});
  reference_.move(3, size, from, to, x.data(), r.data(), {});
  EXPECT_EQ(y, r);
}

INSTANTIATE_TEST_SUITE_P(All, CudaOperatorsTest,
                         testing::Values(Storage{cuda::kFloat, false}, Storage{cuda::kFloat, true},
                                         Storage{cuda::kHalf, false}, Storage{cuda::kHalf, true}),
                         [](const auto& info) {
                           const Storage storage = info.param;
                           return std::string(storage.type == cuda::kHalf ? "half" : "float") +
                                  (storage.misaligned ? "_misaligned" : "");
                         });

// Device memory that begins `first` elements behind a multiple of 16 bytes.
template <typename T>
struct Device {
  Device(std::size_t count, std::size_t first) : first_(first) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, (first + count) * sizeof(T)), cudaSuccess);
    data = static_cast<T*>(memory) + first;
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { cudaFree(data - first_); }
  T* data;

 private:
  std::size_t first_;
};

cuda::Launch launch_with(void* workspace, std::size_t bytes) {
  return {nullptr, 4, workspace, bytes};
}

TEST(CudaConvertTest, GoesThereAndBack) {
  for (const std::size_t first : {0, 1}) {
    for (const std::size_t n : {1, 4, 7, 1024, 40003}) {
      const Device<float> x(n, first), back(n, first);
      const Device<__half> halves(n, first), copy(n, first);
      for (std::size_t i = 0; i < n; ++i) x.data[i] = static_cast<float>(i % 2048) - 1000;
      const cuda::Launch at = launch_with(nullptr, 0);
      ASSERT_EQ(cuda::convert({cuda::kFloat, cuda::kHalf, n, x.data, halves.data}, at), 0);
      ASSERT_EQ(cuda::convert({cuda::kHalf, cuda::kHalf, n, halves.data, copy.data}, at), 0);
      ASSERT_EQ(cuda::convert({cuda::kHalf, cuda::kFloat, n, copy.data, back.data}, at), 0);
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(back.data[i], x.data[i]) << i;
      ASSERT_EQ(cuda::convert({cuda::kFloat, cuda::kFloat, n, x.data, back.data}, at), 0);
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(back.data[i], x.data[i]) << i;
    }
  }
}

TEST(CudaFillTest, FillsEveryElement) {
  for (const std::size_t first : {0, 1}) {
    for (const std::size_t n : {1, 8, 15, 70001}) {
      const Device<float> y(n, first);
      const Device<__half> halves(n, first);
      ASSERT_EQ(cuda::fill({cuda::kFloat, n, 0.1F, y.data}, launch_with(nullptr, 0)), 0);
      ASSERT_EQ(cuda::fill({cuda::kHalf, n, 0.25F, halves.data}, launch_with(nullptr, 0)), 0);
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(y.data[i], 0.1F) << i;
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(__half2float(halves.data[i]), 0.25F) << i;
    }
  }
}

// A long sum is cut into as many parts as the workspace has room for; without room into one.
TEST(CudaReduceTest, NeedsNoWorkspace) {
  constexpr std::size_t kElements = 100000;
  const Device<float> x(kElements, 0), y(1, 0);
  const std::size_t room = cuda::kCounterBytes + 64 * sizeof(float);
  const Device<std::uint8_t> workspace(room, 0);
  for (std::size_t i = 0; i < kElements; ++i) x.data[i] = static_cast<float>(i % 3);
  for (const std::size_t bytes :
       {std::size_t{0}, cuda::kCounterBytes, cuda::kCounterBytes + 2 * sizeof(float), room}) {
    y.data[0] = 0;
    ASSERT_EQ(cuda::reduce({cuda::kFloat, cpu::kSum, 1, kElements, 1, x.data, y.data},
                           launch_with(workspace.data, bytes)),
              0);
    EXPECT_EQ(y.data[0], 99999.0F) << bytes;
  }
}

}  // namespace
}  // namespace mdprune
