// Where an operand is on a device while a domain runs.

#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/library.h"

namespace mdprune {

// One image on a device. Tables of pointers, convolutions and tilings are host
// memory, all else is the device's.
struct DeviceRun {
  const cuda::Library* library;
  cuda::Launch launch;
  std::uint8_t* arena;
  const std::uint8_t* weights;
  const std::uint8_t* tables;
  const float* const* inputs;
  float* const* outputs;
  std::size_t image;
  const cuda::Convolution* convolutions;  // of the domain
  const cuda::Tiling* tilings;            // of its convolutions
};

struct Operand {
  enum class Block : std::uint8_t { kAbsent, kArena, kWeights, kTables, kInput, kOutput };

  Block block = Block::kAbsent;
  std::size_t offset = 0;  // bytes, or number of the input or output
  std::size_t stride = 0;  // kInput, kOutput: elements of one image

  template <typename T>
  const T* read(const DeviceRun& run) const {
    switch (block) {
      case Block::kAbsent: return nullptr;
      case Block::kArena: return reinterpret_cast<const T*>(run.arena + offset);
      case Block::kWeights: return reinterpret_cast<const T*>(run.weights + offset);
      case Block::kTables: return reinterpret_cast<const T*>(run.tables + offset);
      case Block::kInput: return at_port<T>(run.inputs[offset], run.image);
      case Block::kOutput: return at_port<T>(run.outputs[offset], run.image);
    }
    return nullptr;
  }
  template <typename T>
  T* write(const DeviceRun& run) const {
    return const_cast<T*>(read<T>(run));
  }
  const void* x(const DeviceRun& run) const { return read<std::uint8_t>(run); }
  void* y(const DeviceRun& run) const { return write<std::uint8_t>(run); }
  const float* floats(const DeviceRun& run) const { return read<float>(run); }
  const std::int32_t* index(const DeviceRun& run) const { return read<std::int32_t>(run); }

 private:
  template <typename T>
  const T* at_port(const float* first, std::size_t image) const {
    return reinterpret_cast<const T*>(first + image * stride);
  }
};

}  // namespace mdprune
