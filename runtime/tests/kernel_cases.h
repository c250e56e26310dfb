// One table of cases for every kernel: odd sizes, tails, fallbacks. A case runs on any instruction
// set and returns what the kernel wrote.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace mdprune {

struct KernelCase {
  std::string name;
  std::function<std::vector<float>(const cpu::Kernels&, const cpu::Parallel&)> run;
  // Largest |y - r| / max |r|, where r is the reference in double.
  double tolerance = 2e-6;
};

// `halves`: the inputs are numbers that half precision has, so that kernels that store activations
// so are compared with a reference that reads the same.
std::vector<KernelCase> kernel_cases(bool halves = false);

// max |y - r| / max |r|; infinite where sizes differ, or infinities and NaN do not agree.
double difference(const std::vector<float>& y, const std::vector<float>& r);

}  // namespace mdprune
