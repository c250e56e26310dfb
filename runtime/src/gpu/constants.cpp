#include "constants.h"

#include <algorithm>
#include <utility>

namespace mdprune {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kStagedElements = std::size_t{1} << 20;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Operand DeviceWeights::add(const void* floats, std::size_t elements) {
  const auto [found, is_new] = offsets_.try_emplace({floats, elements}, bytes_);
  if (is_new) {
    entries_.push_back({static_cast<const std::uint8_t*>(floats), elements, bytes_});
    bytes_ += aligned(elements * cuda::size_of(type_));
  }
  return {Operand::Block::kWeights, found->second, 0};
}

void DeviceWeights::upload(const cuda::Library& library, void* stream) {
  memory_ = DeviceBytes(library, bytes_);
  const DeviceBytes staging(library, type_ == cuda::kFloat ? 0 : kStagedElements * sizeof(float));
  for (const Entry& entry : entries_) {
    if (type_ == cuda::kFloat) {
      check(library,
            library.to_device(memory_.data() + entry.offset, entry.floats,
                              entry.elements * sizeof(float), stream),
            "copying weights");
    } else {
      convert(library, entry, staging, stream);
    }
  }
  // The staging memory must not go before the last copy is done.
  check(library, library.wait(stream), "copying weights");
}

void DeviceWeights::convert(const cuda::Library& library, const Entry& entry,
                            const DeviceBytes& staging, void* stream) const {
  const cuda::Launch launch{stream, 1, nullptr, 0};
  for (std::size_t done = 0; done < entry.elements; done += kStagedElements) {
    const std::size_t count = std::min(kStagedElements, entry.elements - done);
    check(library,
          library.to_device(staging.data(), entry.floats + done * sizeof(float),
                            count * sizeof(float), stream),
          "copying weights");
    void* to = memory_.data() + entry.offset + done * cuda::size_of(type_);
    check(library, library.convert({cuda::kFloat, type_, count, staging.data(), to}, launch),
          "converting weights");
  }
}

Operand DeviceTables::add(const void* bytes, std::size_t size) {
  const auto found = offsets_.find({bytes, size});
  if (found != offsets_.end()) return {Operand::Block::kTables, found->second, 0};
  const Operand operand = copy(bytes, size);
  offsets_.emplace(std::make_pair(bytes, size), operand.offset);
  return operand;
}

Operand DeviceTables::copy(const void* bytes, std::size_t size) {
  const std::size_t offset = host_.size();
  const auto* first = static_cast<const std::uint8_t*>(bytes);
  host_.insert(host_.end(), first, first + size);
  host_.resize(aligned(host_.size()));
  return {Operand::Block::kTables, offset, 0};
}

void DeviceTables::upload(const cuda::Library& library, void* stream) {
  memory_ = DeviceBytes(library, host_.size());
  if (!host_.empty()) {
    check(library, library.to_device(memory_.data(), host_.data(), host_.size(), stream),
          "copying tables");
  }
  check(library, library.wait(stream), "copying tables");
  host_ = {};
  offsets_.clear();
}

}  // namespace mdprune
