// A model on a device: its weights, and every domain as a list of launches.

#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "constants.h"
#include "model.h"

namespace mdprune {

struct DeviceKernel {
  std::size_t step;  // of the plan
  std::function<int(const DeviceRun&)> launch;
};

struct DeviceDomain {
  std::vector<DeviceKernel> kernels;
  std::vector<cuda::Convolution> convolutions;   // all but their operands
  std::vector<std::size_t> convolution_kernels;  // where each is launched
  std::size_t arena_bytes = 0;                   // activations and what is converted
};

class DeviceModel {
 public:
  // Uploads everything to the device, which is the thread's. The model must outlive this.
  DeviceModel(const Model& model, const cuda::Library& library, int device, cuda::Type type);

  const cuda::Library& library() const { return library_; }
  int device() const { return device_; }
  cuda::Type type() const { return type_; }
  const cuda::DeviceInfo& info() const { return info_; }
  const std::vector<DeviceDomain>& domains() const { return domains_; }
  const DeviceWeights& weights() const { return weights_; }
  const DeviceTables& tables() const { return tables_; }
  std::size_t arena_bytes() const { return arena_bytes_; }          // of the largest domain
  std::size_t workspace_bytes() const { return workspace_bytes_; }  // of any tiling

  // One context after the other may time tilings.
  std::mutex& tuning() { return tuning_; }

 private:
  const cuda::Library& library_;
  const int device_;
  const cuda::Type type_;
  cuda::DeviceInfo info_{};
  std::vector<DeviceDomain> domains_;
  DeviceWeights weights_;
  DeviceTables tables_;
  std::size_t arena_bytes_ = 0;
  std::size_t workspace_bytes_ = 0;
  std::mutex tuning_;
};

// The model on a device, which is the thread's; the same one while a context holds it.
std::shared_ptr<DeviceModel> model_on_device(const Model& model, int device, cuda::Type type);

}  // namespace mdprune
