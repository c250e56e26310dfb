// The weights on the device: one IPluginResource per weight file, device and type, which all nodes
// of all engines of a process share.

#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/library.h"
#include "node.h"

namespace mdprune::tensorrt {

// The launchers; throws std::runtime_error if they are of another version.
const cuda::Library& launchers();
// Throws std::runtime_error for what is not 0.
void check(int error, const char* what);

// Remembers a bundle's directory; false if there is none.
bool add_bundle(const char* directory);

// Holds a weight file on the device as long as it lives.
class DeviceWeights {
 public:
  DeviceWeights() = default;
  // Throws std::runtime_error if no bundle has the file or the device has no room.
  DeviceWeights(const WeightFile& file, cuda::Type type);
  DeviceWeights(DeviceWeights&& other) noexcept;
  DeviceWeights& operator=(DeviceWeights&& other) noexcept;
  ~DeviceWeights();

  // The element whose float is at an offset of the file.
  const void* at(std::uint64_t offset) const;

 private:
  std::string key_;
  std::uint64_t begin_ = 0;
  cuda::Type type_ = cuda::kFloat;
  const std::uint8_t* data_ = nullptr;
};

}  // namespace mdprune::tensorrt
