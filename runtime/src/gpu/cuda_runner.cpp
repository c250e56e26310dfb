#include "cuda_runner.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "activations.h"
#include "failure.h"
#include "tilings.h"

namespace mdprune {
namespace {

class CudaRunner : public Runner {
 public:
  // The device is the thread's.
  CudaRunner(const Model& model, int device, cuda::Type type, const mdp_context_options& options)
      : model_(model),
        on_device_(model_on_device(model, device, type)),
        library_(on_device_->library()),
        device_memory_(options.device_memory != 0),
        own_stream_(make_stream_of(options)),
        stream_(options.stream != nullptr ? options.stream : own_stream_.get()),
        activations_(model, *on_device_, !device_memory_),
        tilings_(find_tilings(model, *on_device_, options.tune != 0)),
        graphs_(model.domains.size()) {
    if (options.profile != 0) make_events();
    if (!device_memory_) {
      for (DeviceHandle& phase : phases_) phase = make_event(library_);
    }
    const cuda::DeviceInfo& info = on_device_->info();
    std::snprintf(name_, sizeof(name_), "cuda:%d sm_%d%d %s", device, info.major, info.minor,
                  type == cuda::kHalf ? "float16" : "float32");
  }

  void run(std::size_t domain, std::size_t batch, const float* const* inputs, float* const* outputs,
           mdp_profile_entry* profile) override {
    const OnDevice on(library_, on_device_->device());
    DeviceRun run = activations_.run(domain, tilings_[domain].data(), stream_);
    if (!device_memory_) {
      times_ = {};
      for (std::size_t image = 0; image < batch; ++image) {
        run_on_host_memory(domain, run, image, inputs, outputs, profile);
        add_times();
      }
      return;
    }
    run.inputs = inputs;
    run.outputs = outputs;
    for (; run.image < batch; ++run.image) launch(domain, run, profile);
  }

  const char* name() const override { return name_; }

  mdp_device_times device_times() const override { return times_; }

  mdp_device_memory device_memory() const override {
    return {0, on_device_->weights().bytes(), on_device_->tables().bytes(), activations_.bytes()};
  }

 private:
  // Graphs are captured on it also where the caller has another: that may be one that cannot be.
  DeviceHandle make_stream_of(const mdp_context_options& options) const {
    if (options.stream != nullptr && options.device_memory != 0) return {};
    return make_stream(library_);
  }

  // One before every launch, and one behind the last.
  void make_events() {
    std::size_t most = 0;
    for (const DeviceDomain& domain : on_device_->domains()) {
      most = std::max(most, domain.kernels.size());
    }
    for (std::size_t i = 0; i <= most; ++i) events_.push_back(make_event(library_));
  }

  void run_on_host_memory(std::size_t domain, const DeviceRun& run, std::size_t image,
                          const float* const* inputs, float* const* outputs,
                          mdp_profile_entry* profile) {
    const Plan& plan = model_.domains[domain].plan;
    record(phases_[0]);
    for (std::size_t i = 0; i < plan.inputs.size(); ++i) {
      const std::size_t n = plan.inputs[i].elements;
      check(library_,
            library_.to_device(activations_.input(i), inputs[i] + image * n, n * sizeof(float),
                               stream_),
            "copying an input");
    }
    record(phases_[1]);
    if (profile != nullptr) {
      launch(domain, run, profile);
    } else {
      check(library_, library_.launch_graph(graph_of(domain, run), stream_), "a graph");
    }
    record(phases_[2]);
    for (std::size_t i = 0; i < plan.outputs.size(); ++i) {
      const std::size_t n = plan.outputs[i].elements;
      check(library_,
            library_.to_host(outputs[i] + image * n, activations_.output(i), n * sizeof(float),
                             stream_),
            "copying an output");
    }
    record(phases_[3]);
  }

  // Waits for the image.
  void add_times() {
    check(library_, library_.wait(stream_), "a run");
    times_.to_device_nanoseconds += between(phases_[0], phases_[1]);
    times_.compute_nanoseconds += between(phases_[1], phases_[2]);
    times_.to_host_nanoseconds += between(phases_[2], phases_[3]);
  }

  std::uint64_t between(const DeviceHandle& from, const DeviceHandle& to) const {
    float milliseconds = 0.0F;
    check(library_, library_.elapsed(&milliseconds, from.get(), to.get()), "an event");
    return static_cast<std::uint64_t>(double{milliseconds} * 1e6);
  }

  void* graph_of(std::size_t domain, DeviceRun run) {
    DeviceHandle& graph = graphs_[domain];
    if (graph.get() != nullptr) return graph.get();
    run.launch.stream = own_stream_.get();
    check(library_, library_.begin_graph(own_stream_.get()), "a graph");
    void* made = nullptr;
    try {
      launch(domain, run, nullptr);
    } catch (const Failure&) {
      library_.end_graph(&made, own_stream_.get());
      graph = DeviceHandle(made, library_.destroy_graph);
      graph = {};
      throw;
    }
    check(library_, library_.end_graph(&made, own_stream_.get()), "a graph");
    graph = DeviceHandle(made, library_.destroy_graph);
    return made;
  }

  void launch(std::size_t domain, const DeviceRun& run, mdp_profile_entry* profile) {
    const std::vector<DeviceKernel>& kernels = on_device_->domains()[domain].kernels;
    for (std::size_t i = 0; i < kernels.size(); ++i) {
      if (profile != nullptr) record(events_[i]);
      const int error = kernels[i].launch(run);
      const char* name = model_.domains[domain].plan.steps[kernels[i].step].name;
      if (error != 0) check(library_, error, name);
    }
    if (profile == nullptr) return;
    record(events_[kernels.size()]);
    check(library_, library_.wait_event(events_[kernels.size()].get()), "a run");
    for (std::size_t i = 0; i < kernels.size(); ++i) {
      profile[kernels[i].step].nanoseconds += between(events_[i], events_[i + 1]);
    }
  }

  void record(const DeviceHandle& event) {
    check(library_, library_.record(event.get(), stream_), "an event");
  }

  const Model& model_;
  const std::shared_ptr<DeviceModel> on_device_;
  const cuda::Library& library_;
  const bool device_memory_;
  const DeviceHandle own_stream_;
  void* const stream_;
  const DeviceActivations activations_;
  const Tilings tilings_;
  std::vector<DeviceHandle> graphs_;  // by domain, made when it first runs
  std::vector<DeviceHandle> events_;
  DeviceHandle phases_[4];  // before the inputs are copied, before and behind the run, at the end
  mdp_device_times times_{};
  char name_[64];
};

// The number of "cuda:1"; for "cuda" the thread's current device.
int device_number(const cuda::Library& library, const std::string& device) {
  int count = 0;
  check(library, library.device_count(&count), "no device");
  int number = 0;
  if (device == "cuda") {
    check(library, library.current_device(&number), "no device");
  } else {
    char rest = '\0';
    if (device.size() > 8 || std::sscanf(device.c_str(), "cuda:%d%c", &number, &rest) != 1 ||
        number < 0) {
      throw Failure(
          MDP_INVALID_ARGUMENT,
          "there is no device \"" + device + "\", only \"cpu\", \"cuda\" and \"cuda:1\" and so on");
    }
  }
  if (number >= count) {
    throw Failure(MDP_UNSUPPORTED, "device " + device + ": there are " + std::to_string(count));
  }
  return number;
}

cuda::Type type_of(const char* precision) {
  if (precision == nullptr || std::strcmp(precision, "float32") == 0) return cuda::kFloat;
  if (std::strcmp(precision, "float16") == 0) return cuda::kHalf;
  throw Failure(MDP_UNSUPPORTED, std::string("device cuda: there is no precision ") + precision +
                                     ", only float32 and float16");
}

}  // namespace

std::unique_ptr<Runner> make_cuda_runner(const Model& model, const std::string& device,
                                         const mdp_context_options& options) {
  if (device.compare(0, 4, "cuda") != 0) {
    throw Failure(MDP_INVALID_ARGUMENT, "there is no device \"" + device + "\"");
  }
  if (options.isa != nullptr || options.parallel_for != nullptr) {
    throw Failure(MDP_INVALID_ARGUMENT,
                  "device cuda: instruction sets and loops of the caller are the cpu's");
  }
  const cuda::Type type = type_of(options.precision);
  const cuda::Library& library = cuda_library();
  const int number = device_number(library, device);
  const OnDevice on(library, number);
  return std::make_unique<CudaRunner>(model, number, type, options);
}

}  // namespace mdprune
