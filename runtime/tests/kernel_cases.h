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

std::vector<KernelCase> kernel_cases();

}  // namespace mdprune
