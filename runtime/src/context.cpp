#include "context.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "cpu_runner.h"
#include "failure.h"
#include "gpu/cuda_runner.h"
#include "tensor.h"

namespace mdprune {
namespace {

constexpr std::size_t kDeviceAlignment = 16;

std::unique_ptr<Runner> make_runner(const Model& model, const mdp_context_options& options) {
  const std::string device = options.device == nullptr ? "cpu" : options.device;
  if (device != "cpu") return make_cuda_runner(model, device, options);
  if (options.precision != nullptr && std::strcmp(options.precision, "float32") != 0) {
    throw Failure(MDP_UNSUPPORTED, std::string("device cpu: there is no precision ") +
                                       options.precision + ", only float32");
  }
  if (options.stream != nullptr || options.device_memory != 0 || options.tune != 0) {
    throw Failure(MDP_INVALID_ARGUMENT, "device cpu: streams, device memory and tuning are cuda's");
  }
  return std::make_unique<CpuRunner>(model, options);
}

}  // namespace

Context::Context(const mdp_model& model, const mdp_context_options& options)
    : model_(model),
      runner_(make_runner(*model.shared, options)),
      profiles_(options.profile != 0),
      alignment_(options.device_memory != 0 ? kDeviceAlignment : alignof(float)) {
  if (profiles_) {
    std::size_t most = 0;
    for (const Domain& domain : model.shared->domains) {
      most = std::max(most, domain.plan.steps.size());
    }
    profile_.reserve(most);
  }
}

template <typename... Arguments>
mdp_status Context::fail(mdp_status status, const char* format, Arguments... arguments) {
  std::snprintf(message_, sizeof(message_), format, arguments...);
  return status;
}

mdp_status Context::select(std::size_t domain) {
  const std::size_t count = model_.shared->domains.size();
  if (domain >= count) {
    return fail(MDP_INVALID_ARGUMENT, "domain %zu: there are %zu", domain, count);
  }
  domain_ = domain;
  profile_.clear();
  return MDP_OK;
}

mdp_status Context::check(std::size_t batch, const float* const* inputs, float* const* outputs) {
  const Plan& plan = model_.shared->domains[domain_].plan;
  if (batch == 0) return fail(MDP_INVALID_ARGUMENT, "%s", "the batch is 0");
  if (batch != 1 && !plan.free_batch) {
    return fail(MDP_INVALID_ARGUMENT, "the batch is %zu, but this network takes 1 only", batch);
  }
  const auto check_ports = [&](const char* what, const std::vector<mdp_tensor>& ports,
                               auto* const* buffers) {
    if (buffers == nullptr && !ports.empty()) {
      return fail(MDP_INVALID_ARGUMENT, "there are no %ss", what);
    }
    for (std::size_t i = 0; i < ports.size(); ++i) {
      const auto address = reinterpret_cast<std::uintptr_t>(buffers[i]);
      if (address == 0 || address % alignment_ != 0) {
        return fail(MDP_INVALID_ARGUMENT, "%s %zu (%.100s) is null or not aligned", what, i,
                    ports[i].name);
      }
      if (batch > kMostElements / ports[i].elements) {
        return fail(MDP_INVALID_ARGUMENT, "the batch is too large: %zu", batch);
      }
    }
    return MDP_OK;
  };
  const mdp_status status = check_ports("input", plan.inputs, inputs);
  return status != MDP_OK ? status : check_ports("output", plan.outputs, outputs);
}

// Returns null where nothing is to be measured.
mdp_profile_entry* Context::start_profile() {
  profile_.clear();
  if (!profiles_) return nullptr;
  for (const Step& step : model_.shared->domains[domain_].plan.steps) {
    profile_.push_back({step.name, step.kind, 0});
  }
  return profile_.data();
}

mdp_status Context::run(std::size_t batch, const float* const* inputs,
                        float* const* outputs) noexcept {
  // Nothing is written where another thread may be reading.
  if (busy_.exchange(true, std::memory_order_acquire)) return MDP_INVALID_ARGUMENT;
  mdp_status status = check(batch, inputs, outputs);
  if (status == MDP_OK) {
    try {
      runner_->run(domain_, batch, inputs, outputs, start_profile());
    } catch (const Failure& failure) {
      status = fail(failure.status(), "%.200s", failure.what());
    } catch (const std::bad_alloc&) {
      status = fail(MDP_NO_MEMORY, "%s", "out of memory");
    } catch (const std::exception& error) {
      status = fail(MDP_INTERNAL, "%.200s", error.what());
    } catch (...) {
      status = fail(MDP_INTERNAL, "%s", "an exception of the caller's parallel_for");
    }
  }
  busy_.store(false, std::memory_order_release);
  return status;
}

}  // namespace mdprune
