// C++17 over mdprune.h: handles that give themselves back, errors as exceptions. Header-only; the
// exceptions are thrown in the caller's code, none crosses the library. See mdprune.h.
//
//     mdprune::Model model("bundle");
//     mdprune::Context context(model);
//     context.select("birds");
//     std::vector<std::vector<float>> outputs = context.run(1, {image});

#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mdprune.h"

namespace mdprune {

class Error : public std::runtime_error {
 public:
  Error(mdp_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  mdp_status status() const noexcept { return status_; }

 private:
  mdp_status status_;
};

inline void check(mdp_status status, const char* message = "") {
  if (status == MDP_OK) return;
  throw Error(status, *message != '\0' ? message : mdp_status_text(status));
}

namespace detail {

inline std::vector<mdp_tensor> tensors(const mdp_model* model, std::size_t domain, bool outputs) {
  std::vector<mdp_tensor> list(outputs ? mdp_model_output_count(model, domain)
                                       : mdp_model_input_count(model, domain));
  for (std::size_t i = 0; i < list.size(); ++i) {
    check(outputs ? mdp_model_output(model, domain, i, &list[i])
                  : mdp_model_input(model, domain, i, &list[i]));
  }
  return list;
}

inline std::size_t find(const mdp_model* model, const std::string& name) {
  std::size_t domain = 0;
  const mdp_status status = mdp_model_find_domain(model, name.c_str(), &domain);
  check(status, status == MDP_NOT_FOUND ? ("the bundle has no domain " + name).c_str() : "");
  return domain;
}

}  // namespace detail

// May be shared by threads as long as it is not moved or destroyed.
class Model {
 public:
  explicit Model(const std::string& path) {
    char message[512] = "";
    mdp_model* model = nullptr;
    check(mdp_model_open(path.c_str(), &model, message, sizeof(message)), message);
    handle_.reset(model);
  }

  mdp_model* handle() const noexcept { return handle_.get(); }

  std::vector<std::string> domains() const {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < mdp_model_domain_count(handle()); ++i) {
      names.emplace_back(mdp_model_domain_name(handle(), i));
    }
    return names;
  }

  std::vector<std::string> labels(std::size_t domain) const {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < mdp_model_label_count(handle(), domain); ++i) {
      names.emplace_back(mdp_model_label(handle(), domain, i));
    }
    return names;
  }

  std::size_t find(const std::string& name) const { return detail::find(handle(), name); }

  // Their names belong to the model.
  std::vector<mdp_tensor> inputs(std::size_t domain) const {
    return detail::tensors(handle(), domain, false);
  }
  std::vector<mdp_tensor> outputs(std::size_t domain) const {
    return detail::tensors(handle(), domain, true);
  }

  mdp_memory memory() const {
    mdp_memory memory;
    check(mdp_model_memory(handle(), &memory));
    return memory;
  }

 private:
  struct Close {
    void operator()(mdp_model* model) const noexcept { mdp_model_close(model); }
  };
  std::unique_ptr<mdp_model, Close> handle_;
};

// Used by one thread at a time; may outlive its Model.
class Context {
 public:
  explicit Context(const Model& model, mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT) {
    char message[512] = "";
    mdp_context* context = nullptr;
    check(mdp_context_create(model.handle(), &options, &context, message, sizeof(message)),
          message);
    handle_.reset(context);
  }

  mdp_context* handle() const noexcept { return handle_.get(); }
  std::string isa() const { return mdp_context_isa(handle()); }
  std::size_t domain() const { return mdp_context_domain(handle()); }

  void select(std::size_t domain) { check_last(mdp_context_select_domain(handle(), domain)); }
  void select(const std::string& name) { select(detail::find(mdp_context_model(handle()), name)); }

  // Buffers of the caller: nothing is allocated. On a GPU see mdp_context_run.
  void run(std::size_t batch, const float* const* inputs, float* const* outputs) {
    check_last(mdp_context_run(handle(), batch, inputs, outputs));
  }

  std::vector<std::vector<float>> run(std::size_t batch,
                                      const std::vector<std::vector<float>>& inputs) {
    const mdp_model* model = mdp_context_model(handle());
    const auto expected = detail::tensors(model, domain(), false);
    if (inputs.size() != expected.size()) {
      throw Error(MDP_INVALID_ARGUMENT, "the number of inputs is wrong");
    }
    std::vector<const float*> from;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].size() != batch * expected[i].elements) {
        throw Error(MDP_INVALID_ARGUMENT, std::string("wrong size of input ") + expected[i].name);
      }
      from.push_back(inputs[i].data());
    }
    std::vector<std::vector<float>> results;
    std::vector<float*> to;
    for (const mdp_tensor& output : detail::tensors(model, domain(), true)) {
      results.emplace_back(batch * output.elements);
      to.push_back(results.back().data());
    }
    run(batch, from.data(), to.data());
    return results;
  }

  std::vector<mdp_profile_entry> profile() const {
    const mdp_profile_entry* entries = nullptr;
    std::size_t count = 0;
    check(mdp_context_profile(handle(), &entries, &count));
    return {entries, entries + count};
  }

  // Of a GPU; zeros on the processor.
  mdp_device_memory device_memory() const {
    mdp_device_memory memory{};
    memory.size = sizeof(memory);
    check(mdp_context_device_memory(handle(), &memory));
    return memory;
  }
  mdp_device_times device_times() const {
    mdp_device_times times{};
    times.size = sizeof(times);
    check(mdp_context_device_times(handle(), &times));
    return times;
  }

 private:
  struct Destroy {
    void operator()(mdp_context* context) const noexcept { mdp_context_destroy(context); }
  };
  void check_last(mdp_status status) const {
    check(status, status == MDP_OK ? "" : mdp_context_message(handle()));
  }

  std::unique_ptr<mdp_context, Destroy> handle_;
};

}  // namespace mdprune
