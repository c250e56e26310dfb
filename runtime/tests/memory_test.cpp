// Allocations: none while a domain is selected or run; one that fails is a status and leaks
// nothing.

#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "bundle_writer.h"
#include "mdprune.h"

namespace {

// Of all threads: contexts with several are not used while these count.
bool counting = false;
std::size_t allocations = 0;
std::size_t living = 0;
std::size_t fails_at = 0;  // the allocation that fails; 0: none

void* allocate(std::size_t size, std::size_t alignment) {
  if (counting) {
    ++allocations;
    if (allocations == fails_at) return nullptr;
    ++living;
  }
  if (alignment <= alignof(std::max_align_t)) return std::malloc(size != 0 ? size : 1);
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* memory = allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void release(void* memory) {
  if (memory == nullptr) return;
  if (counting) --living;
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t size) { return allocate_or_throw(size, 1); }
void* operator new[](std::size_t size) { return allocate_or_throw(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocate(size, 1); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { release(memory); }

namespace mdprune {
namespace {

class MemoryTest : public testing::Test {
 protected:
  void SetUp() override { small_bundle().write(path_); }
  void TearDown() override { counting = false; }
  void count(std::size_t fail = 0) {
    allocations = living = 0;
    fails_at = fail;
    counting = true;
  }
  TemporaryDirectory directory_;
  const std::string path_ = directory_.path("bundle");
};

TEST_F(MemoryTest, SelectAndRunAllocateNothing) {
  for (const std::size_t threads : {1, 2}) {
    for (const int profile : {0, 1}) {
      mdp_model* model = nullptr;
      mdp_context* context = nullptr;
      ASSERT_EQ(mdp_model_open(path_.c_str(), &model, nullptr, 0), MDP_OK);
      mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
      options.threads = threads;
      options.profile = profile;
      ASSERT_EQ(mdp_context_create(model, &options, &context, nullptr, 0), MDP_OK);
      const std::vector<float> image(2 * 384, 0.5F);
      std::vector<float> scores(2 * 6), map(2 * 768);
      const float* inputs[] = {image.data()};
      float* outputs[] = {scores.data(), map.data()};
      count();
      for (std::size_t domain = 0; domain < 3; ++domain) {
        EXPECT_EQ(mdp_context_select_domain(context, domain), MDP_OK);
        EXPECT_EQ(mdp_context_run(context, 2, inputs, outputs), MDP_OK);
      }
      EXPECT_EQ(mdp_context_select_domain(context, 7), MDP_INVALID_ARGUMENT);
      counting = false;
      EXPECT_EQ(allocations, 0U);
      mdp_context_destroy(context);
      mdp_model_close(model);
    }
  }
}

// Calls `use` with every allocation failing in its turn, until there are no more; returns their
// number.
template <typename F>
std::size_t fail_every_allocation(F use) {
  for (std::size_t n = 1;; ++n) {
    use(n);
    if (allocations < n) return n - 1;
    EXPECT_EQ(living, 0U) << "allocation " << n;
  }
}

TEST_F(MemoryTest, AFailedAllocationIsAStatus) {
  const std::size_t for_model = fail_every_allocation([&](std::size_t n) {
    mdp_model* model = nullptr;
    char message[64] = "";
    count(n);
    const mdp_status status = mdp_model_open(path_.c_str(), &model, message, sizeof(message));
    EXPECT_EQ(status, allocations < n ? MDP_OK : MDP_NO_MEMORY) << message;
    mdp_model_close(model);
    counting = false;
  });
  EXPECT_GT(for_model, 100U);

  mdp_model* model = nullptr;
  ASSERT_EQ(mdp_model_open(path_.c_str(), &model, nullptr, 0), MDP_OK);
  const std::size_t for_context = fail_every_allocation([&](std::size_t n) {
    mdp_context* context = nullptr;
    mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
    options.profile = 1;
    count(n);
    const mdp_status status = mdp_context_create(model, &options, &context, nullptr, 0);
    EXPECT_EQ(status, allocations < n ? MDP_OK : MDP_NO_MEMORY);
    mdp_context_destroy(context);
    counting = false;
  });
  EXPECT_GT(for_context, 3U);
  mdp_model_close(model);
}

}  // namespace
}  // namespace mdprune
