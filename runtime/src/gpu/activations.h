// The memory that one context needs on a device beside what its model shares.

#pragma once

#include <cstddef>
#include <vector>

#include "device_model.h"

namespace mdprune {

class DeviceActivations {
 public:
  // With `ports` also for one image of every input and output.
  DeviceActivations(const Model& model, const DeviceModel& on_device, bool ports);

  // A run of image 0 on the memory's own inputs and outputs.
  DeviceRun run(std::size_t domain, const cuda::Tiling* tilings, void* stream) const;
  std::size_t bytes() const { return memory_.size(); }
  float* input(std::size_t port) const { return inputs_[port]; }
  float* output(std::size_t port) const { return outputs_[port]; }

 private:
  const DeviceModel& on_device_;
  DeviceBytes memory_;
  std::size_t arena_ = 0;  // where it begins, behind the workspace
  std::vector<float*> inputs_, outputs_;
};

}  // namespace mdprune
