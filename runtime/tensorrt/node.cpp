#include "node.h"

#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace mdprune::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr std::size_t kSlabInts = 6;
constexpr std::uint64_t kAlignment = 64;

[[noreturn]] void fail(const std::string& text) { throw std::runtime_error("GatherConv: " + text); }

void require(bool holds, const char* text) {
  if (!holds) fail(text);
}

// Calls visit(name, vector) for every field but the text.
template <typename Owner, typename Visit>
void each(Owner& fields, const Visit& visit) {
  visit("slabs", fields.slabs);
  visit("bits", fields.bits);
  visit("rows", fields.rows);
  visit("index", fields.index);
  visit("kernel_shape", fields.kernel_shape);
  visit("strides", fields.strides);
  visit("dilations", fields.dilations);
  visit("pads", fields.pads);
  visit("channels", fields.channels);
  visit("activation", fields.activation);
  visit("alpha", fields.alpha);
  visit("beta", fields.beta);
  visit("scale", fields.scale);
  visit("shift", fields.shift);
  visit("type", fields.type);
}

PluginFieldType kind(const std::vector<std::int32_t>&) { return PluginFieldType::kINT32; }
PluginFieldType kind(const std::vector<float>&) { return PluginFieldType::kFLOAT32; }

bool is_plain(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of("/\\") == std::string::npos;
}

std::vector<WeightFile> read_files(const std::string& text) {
  std::vector<WeightFile> files;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    WeightFile file{};
    words >> file.sha256 >> file.begin >> file.end >> file.name;
    const bool hash = file.sha256.size() == 64 &&
                      file.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
    require(words && hash && is_plain(file.name) && file.begin % kAlignment == 0 &&
                file.begin < file.end,
            "'files' is no list of hashes, spans and names");
    files.push_back(file);
  }
  return files;
}

// Takes bit sets one after the other.
class Bits {
 public:
  Bits(const std::vector<std::int32_t>& words) : words_(words) {}

  const std::uint32_t* take(std::size_t size, std::size_t& set) {
    const std::size_t count = (size + 31) / 32;
    require(count <= words_.size() - taken_, "a bit set is missing");
    const auto* const bits = reinterpret_cast<const std::uint32_t*>(words_.data() + taken_);
    set = 0;
    for (std::size_t i = 0; i < 32 * count; ++i) {
      const bool is_set = (bits[i / 32] >> (i % 32) & 1U) != 0;
      require(!is_set || i < size, "a bit set has bits past the last");
      set += is_set ? 1 : 0;
    }
    taken_ += count;
    return bits;
  }

  bool at_end() const { return taken_ == words_.size(); }

 private:
  const std::vector<std::int32_t>& words_;
  std::size_t taken_ = 0;
};

// Copies `count` numbers of at least `least`.
void copy(const std::vector<std::int32_t>& from, std::size_t count, std::int32_t least,
          std::size_t* to) {
  require(from.size() == count, "a window has another number of axes");
  for (std::size_t i = 0; i < count; ++i) {
    require(from[i] >= least, "a window has a size that is not positive");
    to[i] = static_cast<std::size_t>(from[i]);
  }
}

}  // namespace

const std::vector<PluginField>& field_names() {
  static const std::vector<PluginField> names = [] {
    std::vector<PluginField> made{PluginField("files", nullptr, PluginFieldType::kCHAR, 0)};
    const Fields none;
    each(none, [&](const char* name, const auto& field) {
      if (&field == static_cast<const void*>(&none.type)) return;  // no node has it
      made.emplace_back(name, nullptr, kind(field), 0);
    });
    return made;
  }();
  return names;
}

Fields read_fields(const nvinfer1::PluginFieldCollection& collection) {
  Fields fields;
  for (std::int32_t i = 0; i < collection.nbFields; ++i) {
    const PluginField& from = collection.fields[i];
    if (from.name == nullptr || from.data == nullptr || from.length <= 0) continue;
    const auto length = static_cast<std::size_t>(from.length);
    if (std::strcmp(from.name, "files") == 0) {
      require(from.type == PluginFieldType::kCHAR, "'files' is no text");
      const auto* const text = static_cast<const char*>(from.data);
      fields.files.assign(text, strnlen(text, length));
    }
    each(fields, [&](const char* name, auto& field) {
      if (std::strcmp(from.name, name) != 0) return;
      if (from.type != kind(field)) fail(std::string("'") + name + "' is of another type");
      field.resize(length);
      std::memcpy(field.data(), from.data, length * sizeof field[0]);
    });
  }
  return fields;
}

std::vector<PluginField> write_fields(const Fields& fields) {
  std::vector<PluginField> written{PluginField("files", fields.files.data(), PluginFieldType::kCHAR,
                                               static_cast<std::int32_t>(fields.files.size()))};
  each(fields, [&](const char* name, const auto& field) {
    if (field.empty()) return;
    written.emplace_back(name, field.data(), kind(field), static_cast<std::int32_t>(field.size()));
  });
  return written;
}

Node::Node(const Fields& fields) : files(read_files(fields.files)) {
  copy(fields.kernel_shape, 2, 1, kernel);
  copy(fields.strides, 2, 1, stride);
  copy(fields.dilations, 2, 1, dilation);
  copy(fields.pads, 4, 0, pad);
  require(fields.channels.size() == 1 && fields.channels[0] > 0, "it has no channels");
  channels = static_cast<std::size_t>(fields.channels[0]);
  filters = fields.scale.size();
  require(filters > 0 && fields.shift.size() == filters, "scale and shift differ in length");
  require(fields.activation.size() == 1 && fields.alpha.size() == 1 && fields.beta.size() == 1 &&
              fields.activation[0] >= 0 &&
              static_cast<std::uint32_t>(fields.activation[0]) < kinds::kActivationCodes,
          "it has no such activation");
  activation = {static_cast<std::uint32_t>(fields.activation[0]), fields.alpha[0], fields.beta[0]};
  require(!fields.slabs.empty() && fields.slabs.size() % kSlabInts == 0, "it has no slabs");
  Bits bits(fields.bits), row_bits(fields.rows);
  reduction = 0;
  for (std::size_t at = 0; at < fields.slabs.size(); at += kSlabInts) {
    const std::int32_t* const word = fields.slabs.data() + at;
    require(word[0] >= 0 && word[1] >= 0 && word[2] > 0 && word[3] > 0, "a slab is empty");
    NodeSlab slab{};
    slab.file = static_cast<std::size_t>(word[0]);
    slab.offset = kAlignment * static_cast<std::uint64_t>(word[1]);
    slab.rows = slab.used_rows = static_cast<std::size_t>(word[2]);
    slab.filters = static_cast<std::size_t>(word[3]);
    require(slab.file < files.size(), "a slab is of no file");
    const WeightFile& file = files[slab.file];
    // Sizes are below 2^31 each: the product of taps, rows and filters is checked step by step.
    const std::uint64_t most = std::numeric_limits<std::int32_t>::max();
    const std::uint64_t taps = std::uint64_t{kernel[0]} * kernel[1];
    require(taps <= most && slab.rows <= most / taps && slab.filters <= most / taps / slab.rows,
            "a slab is too large");
    const std::uint64_t size = sizeof(float) * taps * slab.rows * slab.filters;
    require(slab.offset >= file.begin && slab.offset <= file.end && size <= file.end - slab.offset,
            "a slab is outside of its file's span");
    std::size_t used = slab.filters;
    if (word[4] != 0) slab.bits = bits.take(slab.filters, used);
    require(used == filters, "a slab gives another number of filters than scale has");
    if (word[5] != 0) slab.row_bits = row_bits.take(slab.rows, slab.used_rows);
    require(slab.used_rows > 0, "a slab has no row that is used");
    reduction += slab.used_rows;
    slabs.push_back(slab);
  }
  require(bits.at_end() && row_bits.at_end(), "there are more bit sets than slabs");
  require(fields.index.size() == reduction, "index and slabs differ in length");
  for (const std::int32_t channel : fields.index) {
    require(channel >= 0 && channel < fields.channels[0], "index names a channel that x lacks");
  }
  require(fields.type.size() <= 1, "it has several types");
  index = fields.index.data();
  scale = fields.scale.data();
  shift = fields.shift.data();
}

std::size_t Node::output(std::size_t axis, std::size_t input) const {
  const std::size_t padded = input + pad[axis] + pad[axis + 2];
  const std::size_t reach = (kernel[axis] - 1) * dilation[axis] + 1;
  return padded < reach ? 0 : (padded - reach) / stride[axis] + 1;
}

kinds::Window Node::window(std::size_t height, std::size_t width) const {
  return {{1, height, width},
          {1, output(0, height), output(1, width)},
          {1, kernel[0], kernel[1]},
          {1, stride[0], stride[1]},
          {1, dilation[0], dilation[1]},
          {0, pad[0], pad[1]}};
}

}  // namespace mdprune::tensorrt
