// Runs the domains of a model, one at a time.

#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "model.h"
#include "runner.h"

namespace mdprune {

class Context {
 public:
  Context(const mdp_model& model, const mdp_context_options& options);

  // These write a message when they fail.
  mdp_status select(std::size_t domain);
  mdp_status run(std::size_t batch, const float* const* inputs, float* const* outputs) noexcept;

  const mdp_model& model() const { return model_; }
  std::size_t domain() const { return domain_; }
  const char* message() const { return message_; }
  const char* isa() const { return runner_->name(); }
  mdp_device_memory device_memory() const { return runner_->device_memory(); }
  mdp_device_times device_times() const { return runner_->device_times(); }
  const std::vector<mdp_profile_entry>& profile() const { return profile_; }

 private:
  template <typename... Arguments>
  mdp_status fail(mdp_status status, const char* format, Arguments... arguments);
  mdp_status check(std::size_t batch, const float* const* inputs, float* const* outputs);
  mdp_profile_entry* start_profile();

  const mdp_model model_;
  const std::unique_ptr<Runner> runner_;
  const bool profiles_;
  const std::size_t alignment_;  // of inputs and outputs
  std::size_t domain_ = 0;
  std::atomic<bool> busy_{false};
  std::vector<mdp_profile_entry> profile_;
  char message_[256] = "";
};

}  // namespace mdprune

struct mdp_context {
  mdprune::Context context;
};
