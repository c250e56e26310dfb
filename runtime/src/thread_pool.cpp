#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>

namespace mdprune {
namespace {

// Operators follow each other within microseconds; a thread that has waited longer sleeps.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or kSpin has passed; returns ready().
template <typename F>
bool spin(F ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

// Signals are the business of the program's own threads.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

ThreadPool::ThreadPool(std::size_t workers) {
  const BlockSignals block;
  threads_.reserve(workers - 1);
  try {
    for (std::size_t worker = 1; worker < workers; ++worker) {
      threads_.emplace_back([this, worker] { work(worker); });
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

// Taking an index proves that its loop is live, whichever loop that is: the fields are read after.
bool ThreadPool::take_one(std::size_t worker) {
  std::size_t left = left_.load(std::memory_order_relaxed);
  do {
    if (left == 0) return false;
  } while (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                        std::memory_order_relaxed));
  body_(argument_, count_ - left, worker);
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::run(std::size_t count, cpu::Parallel::Body body, void* argument) {
  if (count == 0) return;
  body_ = body;
  argument_ = argument;
  count_ = count;
  done_.store(0, std::memory_order_relaxed);
  left_.store(count, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) {
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  while (take_one(0)) {
  }
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == count; };
  while (!spin(finished)) std::this_thread::yield();
}

// Returns false when the pool stops.
bool ThreadPool::wait_for_work() {
  const auto ready = [this] { return left_.load() > 0 || stopping_.load(); };
  if (!spin(ready)) {
    std::unique_lock<std::mutex> lock(mutex_);
    // `run` reads sleeping_ after it wrote left_, here it is the other way round: one of the two
    // sees the other.
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, ready);
    sleeping_.fetch_sub(1);
  }
  return !stopping_.load();
}

void ThreadPool::work(std::size_t worker) {
  while (wait_for_work()) {
    while (take_one(worker)) {
    }
  }
}

}  // namespace mdprune
