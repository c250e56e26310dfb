// What a model keeps on a device beside activations: each of its constants once, whatever the
// number of domains that read it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "library.h"
#include "operand.h"

namespace mdprune {

// Floats that kernels read as the activations' type: weights above all. They are told first, then
// uploaded once.
class DeviceWeights {
 public:
  explicit DeviceWeights(cuda::Type type) : type_(type) {}

  Operand add(const void* floats, std::size_t elements);
  void upload(const cuda::Library& library, void* stream);

  const std::uint8_t* data() const { return memory_.data(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    const std::uint8_t* floats;
    std::size_t elements;
    std::size_t offset;
  };
  void convert(const cuda::Library& library, const Entry& entry, const DeviceBytes& staging,
               void* stream) const;

  const cuda::Type type_;
  std::map<std::pair<const void*, std::size_t>, std::size_t> offsets_;
  std::vector<Entry> entries_;
  std::size_t bytes_ = 0;
  DeviceBytes memory_;
};

// Small things that are copied as they are: index lists, scales, shifts, tables of convolutions.
class DeviceTables {
 public:
  // Of memory that lives as long as this.
  Operand add(const void* bytes, std::size_t size);
  // Of memory that does not.
  Operand copy(const void* bytes, std::size_t size);
  void upload(const cuda::Library& library, void* stream);

  const std::uint8_t* data() const { return memory_.data(); }
  std::size_t bytes() const { return memory_.size(); }

 private:
  std::map<std::pair<const void*, std::size_t>, std::size_t> offsets_;
  std::vector<std::uint8_t> host_;
  DeviceBytes memory_;
};

}  // namespace mdprune
