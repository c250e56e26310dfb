// Tensors of a plan, and where their elements are while it runs.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "failure.h"

namespace mdprune {

enum class Place : std::uint8_t { kArena, kData, kFile, kInput, kOutput };

struct Tensor {
  Place place;
  bool integer;
  std::size_t rank;
  std::size_t sizes[MDP_MAX_RANK];
  std::size_t elements;
  std::size_t offset;                // bytes in the arena, or number of the input or output
  const std::uint8_t* constant;      // kData, kFile: the elements
  std::size_t elements_of_port = 0;  // kInput, kOutput: what one image takes in the caller's buffer

  bool is_constant() const { return place == Place::kData || place == Place::kFile; }
  std::size_t last() const { return rank == 0 ? 1 : sizes[rank - 1]; }
};

constexpr std::uint64_t kMostElements = std::uint64_t{1} << 48;

// The product of sizes that are not 0; refuses what no tensor could hold.
inline std::size_t product(std::initializer_list<std::uint64_t> sizes) {
  std::uint64_t result = 1;
  for (const std::uint64_t size : sizes) {
    require(size >= 1 && size <= kMostElements / result, "a size is wrong");
    result *= size;
  }
  return static_cast<std::size_t>(result);
}

// One run of one image: the buffers that a context brings.
struct Memory {
  std::uint8_t* arena;
  const float* const* inputs;
  float* const* outputs;
  std::size_t image;
};

// A tensor's address in a Memory; null stands for an absent one.
class Address {
 public:
  Address() = default;
  explicit Address(const Tensor& tensor)
      : place_(tensor.place),
        offset_(tensor.offset),
        stride_(tensor.elements_of_port),
        elements_(tensor.elements),
        constant_(tensor.constant) {}
  explicit Address(const Tensor* tensor) {
    if (tensor != nullptr) *this = Address(*tensor);
  }

  const float* read(const Memory& memory) const {
    switch (place_) {
      case Place::kArena: return reinterpret_cast<const float*>(memory.arena + offset_);
      case Place::kInput: return memory.inputs[offset_] + memory.image * stride_;
      case Place::kOutput: return memory.outputs[offset_] + memory.image * stride_;
      default: return reinterpret_cast<const float*>(constant_);
    }
  }
  float* write(const Memory& memory) const { return const_cast<float*>(read(memory)); }

  // For devices with a memory of their own; the names are those of Tensor.
  Place place() const { return place_; }
  std::size_t offset() const { return offset_; }
  std::size_t elements_of_port() const { return stride_; }
  std::size_t elements() const { return elements_; }
  const std::uint8_t* constant() const { return constant_; }
  bool is_absent() const { return elements_ == 0; }

 private:
  Place place_ = Place::kData;
  std::size_t offset_ = 0;
  std::size_t stride_ = 0;
  std::size_t elements_ = 0;
  const std::uint8_t* constant_ = nullptr;
};

}  // namespace mdprune
