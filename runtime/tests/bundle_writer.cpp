#include "bundle_writer.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>

namespace mdprune {
namespace {

void put(Bytes& to, std::uint64_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) to.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

void put_text(Bytes& to, const std::string& text) {
  put(to, text.size(), 4);
  to.insert(to.end(), text.begin(), text.end());
}

void align(Bytes& bytes) { bytes.resize((bytes.size() + 63) / 64 * 64); }

std::size_t append(Bytes& bytes, const void* from, std::size_t size) {
  align(bytes);
  const std::size_t offset = bytes.size();
  const auto* start = static_cast<const std::uint8_t*>(from);
  bytes.insert(bytes.end(), start, start + size);
  return offset;
}

}  // namespace

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

std::size_t WeightWriter::add(const std::vector<float>& values) {
  return append(bytes, values.data(), values.size() * sizeof(float));
}

std::uint32_t PlanWriter::input(const std::string& name, const Words& sizes) {
  inputs.push_back({static_cast<std::uint32_t>(tensors.size()), name});
  tensors.push_back({3, 0, sizes, 0, inputs.size() - 1});
  return inputs.back().tensor;
}

std::uint32_t PlanWriter::output(const std::string& name, const Words& sizes) {
  outputs.push_back({static_cast<std::uint32_t>(tensors.size()), name});
  tensors.push_back({4, 0, sizes, 0, outputs.size() - 1});
  return outputs.back().tensor;
}

std::uint32_t PlanWriter::arena(const Words& sizes) {
  std::uint64_t bytes = 4;
  for (const std::uint32_t size : sizes) bytes *= size;
  tensors.push_back({0, 0, sizes, 0, arena_bytes});
  arena_bytes += (bytes + 63) / 64 * 64;
  return static_cast<std::uint32_t>(tensors.size() - 1);
}

std::uint32_t PlanWriter::constant(const void* values, std::size_t count, std::uint8_t type,
                                   const Words& sizes) {
  tensors.push_back({1, type, sizes, 0, append(data_bytes, values, count * 4)});
  return static_cast<std::uint32_t>(tensors.size() - 1);
}

std::uint32_t PlanWriter::data(const std::vector<float>& values, const Words& sizes) {
  return constant(values.data(), values.size(), 0, sizes);
}

std::uint32_t PlanWriter::integers(const std::vector<std::int32_t>& values, const Words& sizes) {
  return constant(values.data(), values.size(), 1, sizes);
}

std::uint32_t PlanWriter::weight(const std::vector<float>& values, const Words& sizes) {
  tensors.push_back({2, 0, sizes, 0, weights_->add(values)});
  return static_cast<std::uint32_t>(tensors.size() - 1);
}

void PlanWriter::add(std::uint32_t code, const std::string& name, const Words& words) {
  operators.push_back({code, name, words});
}

Bytes PlanWriter::finish() const {
  std::string strings;
  const auto add_text = [&](Bytes& to, const std::string& text) {
    put(to, strings.size(), 4);
    put(to, text.size(), 4);
    strings += text;
  };
  Bytes tables;
  for (const auto& [name, size] : files) {
    add_text(tables, name);
    put(tables, size, 8);
    put(tables, 0, 8);
  }
  for (const Tensor& tensor : tensors) {
    put(tables, tensor.place, 1);
    put(tables, tensor.type, 1);
    put(tables, tensor.sizes.size(), 1);
    put(tables, 0, 1);
    put(tables, tensor.file, 4);
    put(tables, tensor.offset, 8);
    for (std::size_t axis = 0; axis < 8; ++axis) {
      put(tables, axis < tensor.sizes.size() ? tensor.sizes[axis] : 0, 4);
    }
  }
  for (const auto* ports : {&inputs, &outputs}) {
    for (const Port& port : *ports) {
      put(tables, port.tensor, 4);
      add_text(tables, port.name);
      put(tables, 0, 4);
    }
  }
  for (const std::string& label : labels) add_text(tables, label);
  Words words;
  for (const Operator& one : operators) {
    put(tables, one.code, 4);
    put(tables, words.size(), 4);
    put(tables, one.words.size(), 4);
    add_text(tables, one.name);
    put(tables, 0, 4);
    words.insert(words.end(), one.words.begin(), one.words.end());
  }
  for (const std::uint32_t word : words) put(tables, word, 4);
  const std::size_t end = 96 + tables.size() + strings.size();
  const std::size_t data_offset = (end + 63) / 64 * 64;
  Bytes plan;
  for (const char letter : {'M', 'D', 'P', 'P', 'L', 'A', 'N', '\0'}) put(plan, letter, 1);
  put(plan, version, 4);
  put(plan, flags, 4);
  put(plan, data_offset + data_bytes.size(), 8);
  put(plan, arena_bytes, 8);
  for (const std::size_t count : {files.size(), tensors.size(), inputs.size(), outputs.size(),
                                  labels.size(), operators.size(), words.size(), std::size_t{0}}) {
    put(plan, count, 4);
  }
  put(plan, strings.size(), 8);
  put(plan, data_offset, 8);
  put(plan, data_bytes.size(), 8);
  put(plan, 0, 8);
  plan.insert(plan.end(), tables.begin(), tables.end());
  plan.insert(plan.end(), strings.begin(), strings.end());
  align(plan);
  plan.insert(plan.end(), data_bytes.begin(), data_bytes.end());
  return plan;
}

Bytes BundleWriter::index() const {
  Bytes bytes;
  for (const char letter : {'M', 'D', 'P', 'I', 'N', 'D', 'E', 'X'}) put(bytes, letter, 1);
  put(bytes, 1, 4);
  put(bytes, plans.size(), 4);
  for (std::size_t i = 0; i < plans.size(); ++i) {
    put_text(bytes, plans[i].first);
    put_text(bytes, plan_name(i));
    put(bytes, plans[i].second.size(), 8);
  }
  return bytes;
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

void BundleWriter::write(const std::string& directory) const {
  const std::string native = directory + "/native";
  std::filesystem::create_directories(native);
  write_file(native + "/weights.bin", weights.bytes);
  for (std::size_t i = 0; i < plans.size(); ++i) {
    write_file(native + "/" + plan_name(i), plans[i].second);
  }
  write_file(native + "/index.bin", index());
}

namespace {

std::vector<float> noise(std::size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<float> values(count);
  for (float& value : values) value = float(engine() % 2000) / 1000.0F - 1.0F;
  return values;
}

// What all domains share: a 3x3 convolution of up to 12 stored filters in three slabs.
struct SharedWeights {
  std::size_t first, second, third;
  std::vector<float> a = noise(9 * 5 * 12, 1), b = noise(9 * 2 * 5, 2), c = noise(9 * 3 * 3, 10);
};

// Words stay in rows.
// clang-format off
void write_network(PlanWriter& plan, const SharedWeights& shared, std::uint32_t domain) {
  const std::uint32_t filters = 8;
  const std::uint32_t classes = 4 + domain;
  const auto shared_weight = [&](std::size_t offset, const Words& sizes) {
    plan.tensors.push_back({2, 0, sizes, 0, offset});
    return static_cast<std::uint32_t>(plan.tensors.size() - 1);
  };
  const std::int32_t all[] = {0x0FF, 0xFF0, 0xF0F};  // eight of twelve filters
  const std::uint32_t image = plan.input("image", {1, 6, 8, 8});
  const std::uint32_t scores = plan.output("scores", {1, classes});
  const std::uint32_t map = plan.output("map", {1, 6, 16, 8});
  // Channels last, then the shared convolution with all of its epilogue.
  const std::uint32_t x = plan.arena({1, 8, 8, 6});
  plan.add(12, "last", {image, x, 3, 0, 0, 8, 8, 6, 8, 1, 64, 48, 6, 1});
  const std::uint32_t scale = plan.data(noise(filters, 3 + domain), {filters});
  const std::uint32_t shift = plan.data(noise(filters, 5 + domain), {filters});
  const std::uint32_t index = plan.integers({5, 1, 2, 3, 4, 0}, {6});
  const std::uint32_t bits = plan.integers({all[domain % 3]}, {1});
  const std::uint32_t four = plan.integers({0x17}, {1});  // of five rows
  const std::uint32_t y = plan.arena({1, 8, 8, filters});
  const std::uint32_t y2 = plan.arena({1, 8, 8, filters});
  // Four rows of one slab; two of another, and for the filters that it lacks of a third.
  plan.add(1, "convolution", {x, y, scale, shift, kNone, index, 1, 0, 0, y2, scale, shift, 0, 0,
           0, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0, filters, 3,
           shared_weight(shared.first, {9, 5, 12}), bits, four, kNone,
           shared_weight(shared.second, {9, 2, 5}), kNone, kNone, plan.integers({0x1F}, {1}),
           shared_weight(shared.third, {9, 3, 3}), kNone, plan.integers({0x5}, {1}),
           plan.integers({0xE0}, {1}), kNone});
  const std::uint32_t depth = plan.arena({1, 4, 4, filters});
  plan.add(2, "depthwise", {y2, depth, kNone, shift, kNone, 7, 0, 0, plan.data(noise(9 * filters,
           6), {9, filters}), 2, 1, 3, 3, 1, 2, 2, 1, 1, 1, 0, 1, 1});
  const std::uint32_t pooled = plan.arena({1, 4, 4, filters});
  plan.add(3, "pool", {y, pooled, 0, 2, 1, 3, 3, 1, 2, 2, 1, 1, 1, 0, 1, 1});
  const std::uint32_t sum = plan.arena({1, 4, 4, filters});
  plan.add(6, "add", {depth, pooled, sum, 0, 5, 0, 0});
  plan.add(4, "affine", {sum, sum, kNone, scale, shift, 13, 0, 0});
  plan.add(5, "unary", {sum, sum, 9, 0, 0});
  const std::uint32_t positive = plan.arena({1, 4, 4, filters});
  const std::uint32_t zero = plan.data({0.0F}, {});
  plan.add(6, "greater", {sum, zero, positive, 11, 0, 0, 0});
  const std::uint32_t chosen = plan.arena({1, 4, 4, filters});
  plan.add(7, "select", {positive, sum, pooled, chosen});
  plan.add(10, "normalize", {chosen, chosen, bits_of(1e-5F), 1, 16, filters});
  const std::uint32_t mean = plan.arena({1, filters});
  plan.add(8, "mean", {chosen, mean, 0, 1, 16, filters});

  // The head, twice over: as a packed convolution and as a product with softmax between.
  const std::uint32_t head = plan.data(noise(filters * 16, 8 + domain), {1, 1, 1, filters, 16});
  const std::uint32_t logits = plan.arena({1, classes});
  plan.add(1, "head", {mean, logits, kNone, kNone, kNone, kNone, 0, 0, 0, kNone, kNone, kNone, 0,
           0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, classes, 1, head, kNone, kNone, kNone, kNone});
  plan.add(9, "softmax", {logits, logits, 0, 1, classes, 1});
  plan.add(11, "matmul", {logits, plan.data(noise(classes * classes, 9), {classes, classes}),
           scores});

  // The map: six channels of the convolution, twice as high, channels first again.
  const std::uint32_t some = plan.arena({1, 8, 8, 6});
  plan.add(13, "gather", {y, some, plan.integers({7, 0, 3, 3, 1, 2}, {6}), 64, filters, 1});
  std::vector<std::int32_t> rows;
  std::vector<float> weights;
  for (std::int32_t row = 0; row < 16; ++row) {
    rows.insert(rows.end(), {row / 2, std::min(row / 2 + 1, 7)});
    weights.insert(weights.end(), {0.75F, 0.25F});
  }
  const std::uint32_t high = plan.arena({1, 16, 8, 6});
  plan.add(15, "interpolate", {some, high, plan.integers(rows, {16, 2}), plan.data(weights, {16,
           2}), 2, 1, 8, 48});
  plan.add(14, "fill", {map, bits_of(0.5F)});
  // All but the first column; it stays filled.
  plan.add(12, "first", {high, map, 3, 6, 1, 6, 16, 7, 1, 48, 6, 128, 8, 1});
}
// clang-format on

}  // namespace

BundleWriter small_bundle() {
  BundleWriter bundle;
  SharedWeights shared;
  shared.first = bundle.weights.add(shared.a);
  shared.second = bundle.weights.add(shared.b);
  shared.third = bundle.weights.add(shared.c);
  for (std::uint32_t domain = 0; domain < 3; ++domain) {
    PlanWriter plan(bundle.weights);
    plan.flags = 1;
    plan.files.emplace_back("weights.bin", bundle.weights.bytes.size());
    for (std::uint32_t label = 0; label < 4 + domain; ++label) {
      plan.labels.push_back("class " + std::to_string(label));
    }
    write_network(plan, shared, domain);
    bundle.plans.emplace_back("domain " + std::to_string(domain), plan.finish());
  }
  return bundle;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = std::filesystem::temp_directory_path().string() + "/mdprune-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary directory");
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace mdprune
