// Runs plans on this processor's cores.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/kernels.h"
#include "runner.h"
#include "thread_pool.h"

namespace mdprune {

// Bytes for vectors; their content is undefined.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::size_t size)
      : data_(static_cast<std::uint8_t*>(::operator new(size + kAlignment, kAlign))) {}
  std::uint8_t* data() const { return data_.get(); }

 private:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::align_val_t kAlign{kAlignment};
  struct Free {
    void operator()(std::uint8_t* data) const { ::operator delete(data, kAlign); }
  };
  std::unique_ptr<std::uint8_t, Free> data_;
};

class CpuRunner : public Runner {
 public:
  // Throws Failure if the instructions are not there or the number of workers is wrong.
  CpuRunner(const Model& model, const mdp_context_options& options);

  void run(std::size_t domain, std::size_t batch, const float* const* inputs, float* const* outputs,
           mdp_profile_entry* profile) override;
  const char* name() const override { return kernels_.name; }

 private:
  struct CallersLoop;
  static void run_alone(void* self, std::size_t count, cpu::Parallel::Body body, void* argument);
  static void run_pool(void* self, std::size_t count, cpu::Parallel::Body body, void* argument);
  static void run_callers(void* self, std::size_t count, cpu::Parallel::Body body, void* argument);

  const Model& model_;
  const cpu::Kernels& kernels_;
  const std::size_t workers_;
  const mdp_parallel_for callers_loop_;
  void* const callers_argument_;
  AlignedBytes arena_;
  AlignedBytes scratch_;
  std::unique_ptr<ThreadPool> pool_;
  bool loop_is_broken_ = false;  // the caller's parallel_for does not what it must
};

}  // namespace mdprune
