#include "context.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

namespace mdprune {
namespace {

constexpr std::size_t kMostWorkers = 1024;

const cpu::Kernels& kernels_of(const char* isa) {
  const cpu::Kernels* kernels = cpu::find_kernels(isa);
  if (kernels == nullptr) {
    throw Failure(MDP_UNSUPPORTED, std::string(isa != nullptr ? isa : "MDPRUNE_ISA") +
                                       ": these instructions are not there");
  }
  return *kernels;
}

std::size_t workers_of(const mdp_context_options& options) {
  const std::size_t workers = options.parallel_for != nullptr
                                  ? options.parallel_workers
                                  : std::max<std::size_t>(1, options.threads);
  if (workers < 1 || workers > kMostWorkers) {
    throw Failure(MDP_INVALID_ARGUMENT, "the number of workers must be 1 to 1024");
  }
  return workers;
}

}  // namespace

Context::Context(const mdp_model& model, const mdp_context_options& options)
    : model_(model),
      kernels_(kernels_of(options.isa)),
      workers_(workers_of(options)),
      callers_loop_(options.parallel_for),
      callers_argument_(options.parallel_user),
      profiles_(options.profile != 0),
      arena_(model.shared->memory().arena_bytes),
      scratch_(workers_ * cpu::kScratchBytes) {
  if (callers_loop_ == nullptr && workers_ > 1) pool_ = std::make_unique<ThreadPool>(workers_);
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
      if (address == 0 || address % alignof(float) != 0) {
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

void Context::run_alone(void*, std::size_t count, cpu::Parallel::Body body, void* argument) {
  for (std::size_t i = 0; i < count; ++i) body(argument, i, 0);
}

void Context::run_pool(void* self, std::size_t count, cpu::Parallel::Body body, void* argument) {
  static_cast<Context*>(self)->pool_->run(count, body, argument);
}

// Stands between a kernel and the caller's parallel_for, which is not trusted with memory.
struct Context::CallersLoop {
  cpu::Parallel::Body body;
  void* argument;
  std::size_t count;
  std::size_t workers;
  std::atomic<std::size_t> done;
  std::atomic<bool> broken;

  static void one(void* self, std::size_t index, std::size_t worker) {
    auto& loop = *static_cast<CallersLoop*>(self);
    if (index >= loop.count || worker >= loop.workers) {
      loop.broken = true;
      return;
    }
    loop.body(loop.argument, index, worker);
    loop.done.fetch_add(1);
  }
};

void Context::run_callers(void* self, std::size_t count, cpu::Parallel::Body body, void* argument) {
  Context& context = *static_cast<Context*>(self);
  CallersLoop loop{body, argument, count, context.workers_, {0}, {false}};
  context.callers_loop_(context.callers_argument_, count, CallersLoop::one, &loop);
  if (loop.broken || loop.done != count) context.loop_is_broken_ = true;
}

void Context::start_profile(const Plan& plan) {
  profile_.clear();
  if (!profiles_) return;
  for (const Step& step : plan.steps) profile_.push_back({step.name, step.kind, 0});
}

mdp_status Context::run_steps(std::size_t batch, const float* const* inputs,
                              float* const* outputs) {
  const Plan& plan = model_.shared->domains[domain_].plan;
  const auto run = callers_loop_ != nullptr ? run_callers : pool_ != nullptr ? run_pool : run_alone;
  cpu::Parallel parallel{run, this, workers_, scratch_.data(), nullptr};
  start_profile(plan);
  for (std::size_t image = 0; image < batch; ++image) {
    const Memory memory{arena_.data(), inputs, outputs, image};
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      using Clock = std::chrono::steady_clock;
      const auto start = profiles_ ? Clock::now() : Clock::time_point{};
      parallel.next = plan.steps[i].next;
      plan.steps[i].run->run(memory, kernels_, parallel);
      if (profiles_) {
        const auto passed = std::chrono::nanoseconds(Clock::now() - start).count();
        profile_[i].nanoseconds += static_cast<std::uint64_t>(passed);
      }
      if (loop_is_broken_) {
        loop_is_broken_ = false;
        return fail(MDP_INVALID_ARGUMENT, "%s",
                    "the caller's parallel_for did not run every index once, each on a worker "
                    "below the number of workers");
      }
    }
  }
  return MDP_OK;
}

mdp_status Context::run(std::size_t batch, const float* const* inputs,
                        float* const* outputs) noexcept {
  // Nothing is written where another thread may be reading.
  if (busy_.exchange(true, std::memory_order_acquire)) return MDP_INVALID_ARGUMENT;
  mdp_status status = check(batch, inputs, outputs);
  if (status == MDP_OK) {
    try {
      status = run_steps(batch, inputs, outputs);
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
