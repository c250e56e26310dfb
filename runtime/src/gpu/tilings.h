// Which tiling every convolution takes on a device: expected, measured, or read from a side file.
//
// The file, native/cuda-KEY.tilings in the bundle, is for one kind of device and one version of
// driver and library, which its first line and KEY tell. Each other line is a convolution's sizes
// and its tiling. It is never needed: one that is missing, broken or of others is as none.

#pragma once

#include <vector>

#include "device_model.h"

namespace mdprune {

// By domain and convolution.
using Tilings = std::vector<std::vector<cuda::Tiling>>;

// The device must be the thread's. With `measure` tilings that are not in the file are timed, and
// it is written anew.
Tilings find_tilings(const Model& model, DeviceModel& on_device, bool measure);

// One at least, the one that is expected to be fastest first.
std::vector<cuda::Tiling> candidates(const cuda::Library& library,
                                     const cuda::Convolution& convolution, int multiprocessors);

}  // namespace mdprune
