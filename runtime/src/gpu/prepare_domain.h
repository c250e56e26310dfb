// Turns the operators of a plan into launches.

#pragma once

#include <memory>
#include <vector>

#include "constants.h"
#include "device_model.h"
#include "plan.h"

namespace mdprune {

// A convolution whose tables are made when its weights are on the device.
struct PendingConvolution {
  const cpu::Convolution* convolution;
  const char* name;
  std::vector<Operand> weights;
};

struct PreparedDomain {
  DeviceDomain domain;
  std::vector<PendingConvolution> convolutions;
};

PreparedDomain prepare_domain(const Plan& plan, cuda::Type type, DeviceWeights& weights,
                              DeviceTables& tables);

}  // namespace mdprune
