// Runs plans on a GPU.

#pragma once

#include <memory>
#include <string>

#include "runner.h"

namespace mdprune {

// `device` is what the options name. Throws Failure.
std::unique_ptr<Runner> make_cuda_runner(const Model& model, const std::string& device,
                                         const mdp_context_options& options);

}  // namespace mdprune
