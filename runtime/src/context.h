// Runs the domains of a model, one at a time.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu/kernels.h"
#include "model.h"
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

class Context {
 public:
  Context(const mdp_model& model, const mdp_context_options& options);

  // These write a message when they fail.
  mdp_status select(std::size_t domain);
  mdp_status run(std::size_t batch, const float* const* inputs, float* const* outputs) noexcept;

  const mdp_model& model() const { return model_; }
  std::size_t domain() const { return domain_; }
  const char* message() const { return message_; }
  const char* isa() const { return kernels_.name; }
  const std::vector<mdp_profile_entry>& profile() const { return profile_; }

 private:
  struct CallersLoop;
  static void run_alone(void* self, std::size_t count, cpu::Parallel::Body body, void* argument);
  static void run_pool(void* self, std::size_t count, cpu::Parallel::Body body, void* argument);
  static void run_callers(void* self, std::size_t count, cpu::Parallel::Body body, void* argument);

  template <typename... Arguments>
  mdp_status fail(mdp_status status, const char* format, Arguments... arguments);
  mdp_status check(std::size_t batch, const float* const* inputs, float* const* outputs);
  mdp_status run_steps(std::size_t batch, const float* const* inputs, float* const* outputs);
  void start_profile(const Plan& plan);

  const mdp_model model_;
  const cpu::Kernels& kernels_;
  const std::size_t workers_;
  const mdp_parallel_for callers_loop_;
  void* const callers_argument_;
  const bool profiles_;
  AlignedBytes arena_;
  AlignedBytes scratch_;
  std::unique_ptr<ThreadPool> pool_;
  std::size_t domain_ = 0;
  bool loop_is_broken_ = false;  // the caller's parallel_for does not what it must
  std::atomic<bool> busy_{false};
  std::vector<mdp_profile_entry> profile_;
  char message_[256] = "";
};

}  // namespace mdprune

struct mdp_context {
  mdprune::Context context;
};
