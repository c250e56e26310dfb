// Threads that share the indices of one loop after the other.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace mdprune {

class ThreadPool {
 public:
  // The caller of `run` is worker 0; workers - 1 threads are started.
  explicit ThreadPool(std::size_t workers);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  // One call at a time.
  void run(std::size_t count, cpu::Parallel::Body body, void* argument);

 private:
  void work(std::size_t worker);
  bool take_one(std::size_t worker);
  bool wait_for_work();
  void stop();

  // A loop is live while `left_` is above 0 or `done_` below count; its fields do not change then.
  cpu::Parallel::Body body_ = nullptr;
  void* argument_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> left_{0};
  std::atomic<std::size_t> done_{0};

  std::atomic<bool> stopping_{false};
  std::atomic<std::size_t> sleeping_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace mdprune
