// Threads: one model under many contexts, a context's own threads, and the caller's.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <thread>

#include "bundle_writer.h"
#include "mdprune.hpp"
#include "thread_pool.h"

namespace mdprune {
namespace {

using Outputs = std::vector<std::vector<float>>;

std::vector<float> image(std::size_t batch) {
  std::vector<float> values(batch * 384);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(float(i) * 0.7F);
  return values;
}

class ThreadsTest : public testing::Test {
 protected:
  void SetUp() override {
    small_bundle().write(directory_.path("bundle"));
    model_ = std::make_unique<Model>(directory_.path("bundle"));
    Context context(*model_);
    for (std::size_t domain = 0; domain < 3; ++domain) {
      context.select(domain);
      expected_.push_back(context.run(2, {image(2)}));
    }
  }
  TemporaryDirectory directory_;
  std::unique_ptr<Model> model_;
  std::vector<Outputs> expected_;  // by domain, of one thread
};

// MDPRUNE_SECONDS: how long; contexts have one thread or three of their own.
TEST_F(ThreadsTest, EightThreadsRunAllDomains) {
  const char* seconds = std::getenv("MDPRUNE_SECONDS");
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(seconds != nullptr ? 1000 * std::atoi(seconds) : 500);
  std::atomic<std::size_t> different{0};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
      options.threads = t % 4 == 0 ? 3 : 1;
      Context context(*model_, options);
      std::size_t domain = t % 3;
      do {
        context.select(domain);
        if (context.run(2, {image(2)}) != expected_[domain]) ++different;
        domain = (domain + 1) % 3;
      } while (std::chrono::steady_clock::now() < end);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0U);
}

// Runs on threads that it starts for every loop.
void simple_parallel_for(void* user, size_t count, void (*body)(void*, size_t, size_t),
                         void* argument) {
  ++*static_cast<std::size_t*>(user);
  std::thread other([&] {
    for (std::size_t i = 1; i < count; i += 2) body(argument, i, 1);
  });
  for (std::size_t i = 0; i < count; i += 2) body(argument, i, 0);
  other.join();
}

TEST_F(ThreadsTest, TheCallersThreadsGiveTheSame) {
  std::size_t loops = 0;
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  options.parallel_for = simple_parallel_for;
  options.parallel_user = &loops;
  options.parallel_workers = 2;
  Context context(*model_, options);
  for (std::size_t domain = 0; domain < 3; ++domain) {
    context.select(domain);
    EXPECT_EQ(context.run(2, {image(2)}), expected_[domain]);
  }
  EXPECT_GT(loops, 0U);
}

TEST_F(ThreadsTest, ACallersLoopThatMisbehavesIsAStatus) {
  const mdp_parallel_for bad[] = {
      [](void*, size_t, void (*)(void*, size_t, size_t), void*) {},
      [](void*, size_t count, void (*body)(void*, size_t, size_t), void* argument) {
        for (std::size_t i = 0; i < count; ++i) body(argument, i, 2);
      },
      [](void*, size_t count, void (*body)(void*, size_t, size_t), void* argument) {
        for (std::size_t i = 0; i <= count; ++i) body(argument, i, 0);
      },
  };
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  options.parallel_workers = 2;
  for (const mdp_parallel_for loop : bad) {
    options.parallel_for = loop;
    Context context(*model_, options);
    try {
      context.run(1, {image(1)});
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), MDP_INVALID_ARGUMENT);
      EXPECT_NE(std::string(error.what()).find("parallel_for did not run"), std::string::npos);
    }
  }
  options.parallel_for = [](void*, size_t, void (*)(void*, size_t, size_t), void*) {
    throw std::runtime_error("from the caller");
  };
  Context context(*model_, options);
  EXPECT_THROW(context.run(1, {image(1)}), Error);
  EXPECT_STREQ(mdp_context_message(context.handle()), "from the caller");
}

TEST(ThreadPoolTest, RunsEveryIndexOnce) {
  for (const std::size_t workers : {1, 2, 5}) {
    ThreadPool pool(workers);
    for (const std::size_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(count);
      std::atomic<bool> bad_worker{false};
      struct Argument {
        std::vector<std::atomic<int>>& runs;
        std::atomic<bool>& bad_worker;
        std::size_t workers;
      } argument{runs, bad_worker, workers};
      for (int round = 0; round < 200; ++round) {
        pool.run(
            count,
            [](void* self, std::size_t index, std::size_t worker) {
              auto& a = *static_cast<Argument*>(self);
              a.runs[index].fetch_add(1, std::memory_order_relaxed);
              if (worker >= a.workers) a.bad_worker = true;
            },
            &argument);
        // A pause that lets workers fall asleep now and then.
        if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      for (const auto& run : runs) EXPECT_EQ(run, 200);
      EXPECT_FALSE(bad_worker);
    }
  }
}

}  // namespace
}  // namespace mdprune
