#include "activations.h"

#include <algorithm>

namespace mdprune {
namespace {

constexpr std::size_t kAlignment = 256;

// Takes the next bytes and returns where they begin.
std::size_t take(std::size_t& bytes, std::size_t size) {
  const std::size_t begin = bytes;
  bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
  return begin;
}

// Offsets of buffers that hold any domain's inputs or outputs.
std::vector<std::size_t> take_ports(std::size_t& bytes, const Model& model,
                                    std::vector<mdp_tensor> Plan::*ports) {
  std::vector<std::size_t> elements;
  for (const Domain& domain : model.domains) {
    const std::vector<mdp_tensor>& own = domain.plan.*ports;
    elements.resize(std::max(elements.size(), own.size()));
    for (std::size_t i = 0; i < own.size(); ++i) {
      elements[i] = std::max(elements[i], own[i].elements);
    }
  }
  std::vector<std::size_t> offsets;
  for (const std::size_t count : elements) offsets.push_back(take(bytes, count * sizeof(float)));
  return offsets;
}

}  // namespace

DeviceActivations::DeviceActivations(const Model& model, const DeviceModel& on_device, bool ports)
    : on_device_(on_device) {
  std::size_t bytes = 0;
  take(bytes, on_device.workspace_bytes());
  arena_ = take(bytes, on_device.arena_bytes());
  std::vector<std::size_t> inputs, outputs;
  if (ports) {
    inputs = take_ports(bytes, model, &Plan::inputs);
    outputs = take_ports(bytes, model, &Plan::outputs);
  }
  const cuda::Library& library = on_device.library();
  memory_ = DeviceBytes(library, bytes);
  const auto at = [&](std::size_t offset) {
    return reinterpret_cast<float*>(memory_.data() + offset);
  };
  for (const std::size_t offset : inputs) inputs_.push_back(at(offset));
  for (const std::size_t offset : outputs) outputs_.push_back(at(offset));
  // The counters, before whichever stream it is that runs first.
  const DeviceHandle stream = make_stream(library);
  check(library, library.clear(memory_.data(), cuda::kCounterBytes, stream.get()), "clearing");
  check(library, library.wait(stream.get()), "clearing");
}

DeviceRun DeviceActivations::run(std::size_t domain, const cuda::Tiling* tilings,
                                 void* stream) const {
  DeviceRun run{};
  run.library = &on_device_.library();
  run.launch = {stream, on_device_.info().multiprocessors, memory_.data(),
                on_device_.workspace_bytes()};
  run.arena = memory_.data() + arena_;
  run.weights = on_device_.weights().data();
  run.tables = on_device_.tables().data();
  run.inputs = inputs_.data();
  run.outputs = outputs_.data();
  run.convolutions = on_device_.domains()[domain].convolutions.data();
  run.tilings = tilings;
  return run;
}

}  // namespace mdprune
