// What a device does for a context.

#pragma once

#include <cstddef>

#include "model.h"

namespace mdprune {

class Runner {
 public:
  virtual ~Runner() = default;
  // Allocates nothing unless it fails; throws Failure. Arguments are checked. `profile`, if not
  // null, has an entry per step whose time is added up.
  virtual void run(std::size_t domain, std::size_t batch, const float* const* inputs,
                   float* const* outputs, mdp_profile_entry* profile) = 0;
  // What the kernels run on, such as "avx2".
  virtual const char* name() const = 0;
  virtual mdp_device_memory device_memory() const { return {}; }
  virtual mdp_device_times device_times() const { return {}; }
};

}  // namespace mdprune
