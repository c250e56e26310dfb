// mdprune.h: checks handles and turns exceptions into statuses.

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "context.h"
#include "failure.h"
#include "mdprune.h"
#include "model.h"

using mdprune::Context;
using mdprune::Failure;
using mdprune::Plan;

namespace {

void write_message(const char* text, char* message, std::size_t size) {
  if (message == nullptr || size == 0) return;
  const std::size_t length = std::min(std::strlen(text), size - 1);
  std::memcpy(message, text, length);
  message[length] = '\0';
}

template <typename F>
mdp_status guarded(char* message, std::size_t size, F f) noexcept {
  const auto failed = [&](mdp_status status, const char* text) {
    write_message(text, message, size);
    return status;
  };
  try {
    return f();
  } catch (const Failure& failure) {
    return failed(failure.status(), failure.what());
  } catch (const std::bad_alloc&) {
    return failed(MDP_NO_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return failed(MDP_NO_MEMORY, "out of memory");
  } catch (const std::system_error& error) {
    return failed(MDP_NO_MEMORY, error.what());  // a thread was refused
  } catch (const std::exception& error) {
    return failed(MDP_INTERNAL, error.what());
  } catch (...) {
    return failed(MDP_INTERNAL, "an unknown exception");
  }
}

const Plan* plan_of(const mdp_model* model, std::size_t domain) {
  if (model == nullptr || domain >= model->shared->domains.size()) return nullptr;
  return &model->shared->domains[domain].plan;
}

mdp_status port_of(const std::vector<mdp_tensor>* ports, std::size_t port, mdp_tensor* tensor) {
  if (ports == nullptr || tensor == nullptr || port >= ports->size()) return MDP_INVALID_ARGUMENT;
  *tensor = (*ports)[port];
  return MDP_OK;
}

// Fills a structure whose caller may know fewer of its fields.
template <typename T>
mdp_status copy_sized(T from, T* to) {
  if (to == nullptr || to->size < sizeof(to->size) || to->size > sizeof(T)) {
    return MDP_INVALID_ARGUMENT;
  }
  from.size = to->size;
  std::memcpy(to, &from, from.size);
  return MDP_OK;
}

}  // namespace

extern "C" {

const char* mdp_version(void) { return MDPRUNE_VERSION; }

const char* mdp_status_text(mdp_status status) {
  switch (status) {
    case MDP_OK: return "done";
    case MDP_INVALID_ARGUMENT: return "the call is wrong";
    case MDP_NOT_FOUND: return "not found";
    case MDP_CORRUPT: return "the bundle is corrupt";
    case MDP_VERSION: return "the bundle is of another version";
    case MDP_NO_MEMORY: return "out of memory";
    case MDP_IO: return "a file cannot be read";
    case MDP_UNSUPPORTED: return "not there on this processor or in this build";
    case MDP_INTERNAL: return "a defect of the library";
    case MDP_DEVICE: return "the device failed";
  }
  return "unknown status";
}

mdp_status mdp_model_open(const char* path, mdp_model** model, char* message, size_t message_size) {
  if (model != nullptr) *model = nullptr;
  return guarded(message, message_size, [&] {
    if (path == nullptr || model == nullptr) throw Failure(MDP_INVALID_ARGUMENT, "a null pointer");
    *model = new mdp_model{mdprune::open_model(path)};
    return MDP_OK;
  });
}

void mdp_model_close(mdp_model* model) { delete model; }

size_t mdp_model_domain_count(const mdp_model* model) {
  return model == nullptr ? 0 : model->shared->domains.size();
}

const char* mdp_model_domain_name(const mdp_model* model, size_t domain) {
  if (plan_of(model, domain) == nullptr) return nullptr;
  return model->shared->domains[domain].name.c_str();
}

mdp_status mdp_model_find_domain(const mdp_model* model, const char* name, size_t* domain) {
  if (model == nullptr || name == nullptr || domain == nullptr) return MDP_INVALID_ARGUMENT;
  const auto& domains = model->shared->domains;
  const auto found = std::find_if(domains.begin(), domains.end(),
                                  [&](const auto& entry) { return entry.name == name; });
  if (found == domains.end()) return MDP_NOT_FOUND;
  *domain = static_cast<size_t>(found - domains.begin());
  return MDP_OK;
}

size_t mdp_model_label_count(const mdp_model* model, size_t domain) {
  const Plan* plan = plan_of(model, domain);
  return plan == nullptr ? 0 : plan->labels.size();
}

const char* mdp_model_label(const mdp_model* model, size_t domain, size_t label) {
  const Plan* plan = plan_of(model, domain);
  return plan == nullptr || label >= plan->labels.size() ? nullptr : plan->labels[label];
}

size_t mdp_model_input_count(const mdp_model* model, size_t domain) {
  const Plan* plan = plan_of(model, domain);
  return plan == nullptr ? 0 : plan->inputs.size();
}

size_t mdp_model_output_count(const mdp_model* model, size_t domain) {
  const Plan* plan = plan_of(model, domain);
  return plan == nullptr ? 0 : plan->outputs.size();
}

mdp_status mdp_model_input(const mdp_model* model, size_t domain, size_t input,
                           mdp_tensor* tensor) {
  const Plan* plan = plan_of(model, domain);
  return port_of(plan == nullptr ? nullptr : &plan->inputs, input, tensor);
}

mdp_status mdp_model_output(const mdp_model* model, size_t domain, size_t output,
                            mdp_tensor* tensor) {
  const Plan* plan = plan_of(model, domain);
  return port_of(plan == nullptr ? nullptr : &plan->outputs, output, tensor);
}

mdp_status mdp_model_memory(const mdp_model* model, mdp_memory* memory) {
  if (model == nullptr || memory == nullptr) return MDP_INVALID_ARGUMENT;
  *memory = model->shared->memory();
  return MDP_OK;
}

mdp_status mdp_context_create(mdp_model* model, const mdp_context_options* options,
                              mdp_context** context, char* message, size_t message_size) {
  if (context != nullptr) *context = nullptr;
  return guarded(message, message_size, [&] {
    if (model == nullptr || context == nullptr) {
      throw Failure(MDP_INVALID_ARGUMENT, "a null pointer");
    }
    mdp_context_options all = MDP_CONTEXT_OPTIONS_INIT;
    if (options != nullptr) {
      if (options->size < sizeof(size_t) || options->size > sizeof(all)) {
        throw Failure(MDP_INVALID_ARGUMENT, "the options are of another version of this library");
      }
      std::memcpy(&all, options, options->size);
    }
    *context = new mdp_context{Context(*model, all)};
    return MDP_OK;
  });
}

void mdp_context_destroy(mdp_context* context) { delete context; }

mdp_status mdp_context_select_domain(mdp_context* context, size_t domain) {
  return context == nullptr ? MDP_INVALID_ARGUMENT : context->context.select(domain);
}

size_t mdp_context_domain(const mdp_context* context) {
  return context == nullptr ? 0 : context->context.domain();
}

const mdp_model* mdp_context_model(const mdp_context* context) {
  return context == nullptr ? nullptr : &context->context.model();
}

mdp_status mdp_context_run(mdp_context* context, size_t batch, const float* const* inputs,
                           float* const* outputs) {
  return context == nullptr ? MDP_INVALID_ARGUMENT : context->context.run(batch, inputs, outputs);
}

const char* mdp_context_message(const mdp_context* context) {
  return context == nullptr ? "a null context" : context->context.message();
}

const char* mdp_context_isa(const mdp_context* context) {
  return context == nullptr ? "" : context->context.isa();
}

mdp_status mdp_context_profile(const mdp_context* context, const mdp_profile_entry** entries,
                               size_t* count) {
  if (context == nullptr || entries == nullptr || count == nullptr) return MDP_INVALID_ARGUMENT;
  *entries = context->context.profile().data();
  *count = context->context.profile().size();
  return MDP_OK;
}

mdp_status mdp_context_device_memory(const mdp_context* context, mdp_device_memory* memory) {
  return context == nullptr ? MDP_INVALID_ARGUMENT
                            : copy_sized(context->context.device_memory(), memory);
}

mdp_status mdp_context_device_times(const mdp_context* context, mdp_device_times* times) {
  return context == nullptr ? MDP_INVALID_ARGUMENT
                            : copy_sized(context->context.device_times(), times);
}

}  // extern "C"
