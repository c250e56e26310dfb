// Every kernel of every instruction set that this processor has, against plain loops in double; and
// the same bits for any number of workers.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <thread>

#include "kernel_cases.h"

namespace mdprune {
namespace {

// Two workers that run at the same time; the second takes every other index.
struct Workers {
  explicit Workers(std::size_t count)
      : workers(count), scratch(new std::uint8_t[count * cpu::kScratchBytes + 64]) {
    const auto address = reinterpret_cast<std::uintptr_t>(scratch.get());
    base = scratch.get() + (64 - address % 64) % 64;
  }
  cpu::Parallel parallel() { return {run, this, workers, base}; }

  static void run(void* self, std::size_t count, cpu::Parallel::Body body, void* argument) {
    const std::size_t workers = static_cast<Workers*>(self)->workers;
    const auto share = [=](std::size_t worker) {
      for (std::size_t i = worker; i < count; i += workers) body(argument, i, worker);
    };
    std::vector<std::thread> threads;
    for (std::size_t worker = 1; worker < workers; ++worker) threads.emplace_back(share, worker);
    share(0);
    for (std::thread& thread : threads) thread.join();
  }

  std::size_t workers;
  std::unique_ptr<std::uint8_t[]> scratch;
  std::uint8_t* base;
};

class KernelTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = cpu::find_kernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << GetParam() << " is not there";
  }
  const cpu::Kernels* kernels_ = nullptr;
};

TEST_P(KernelTest, EqualsTheReference) {
  const cpu::Kernels* reference = cpu::find_kernels("reference");
  ASSERT_NE(reference, nullptr);
  Workers one(1);
  for (const KernelCase& c : kernel_cases()) {
    const auto y = c.run(*kernels_, one.parallel());
    const auto r = c.run(*reference, one.parallel());
    EXPECT_LE(difference(y, r), c.tolerance) << c.name;
  }
}

TEST_P(KernelTest, GivesTheSameBitsOnAnyNumberOfWorkers) {
  Workers one(1);
  Workers three(3);
  for (const KernelCase& c : kernel_cases()) {
    const auto a = c.run(*kernels_, one.parallel());
    const auto b = c.run(*kernels_, three.parallel());
    ASSERT_EQ(a.size(), b.size()) << c.name;
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << c.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelTest, testing::Values("avx512", "avx2", "neon", "portable"),
                         [](const auto& info) { return std::string(info.param); });

TEST(FindKernelsTest, KnowsNames) {
  EXPECT_NE(cpu::find_kernels(nullptr), nullptr);
  EXPECT_STREQ(cpu::find_kernels("portable")->name, "portable");
  EXPECT_EQ(cpu::find_kernels("sse9"), nullptr);
}

}  // namespace
}  // namespace mdprune
