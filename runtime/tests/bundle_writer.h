// Writes bundles for tests, after docs/native-format.md; the reader's code is not used.

#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mdprune {

constexpr std::uint32_t kNone = 0xFFFFFFFF;
using Bytes = std::vector<std::uint8_t>;
using Words = std::vector<std::uint32_t>;

std::uint32_t bits_of(float value);

struct WeightWriter {
  Bytes bytes;
  std::size_t add(const std::vector<float>& values);  // returns the offset
};

// Fields are open, so that tests can break them before `finish`.
struct PlanWriter {
  struct Tensor {
    std::uint8_t place, type;
    Words sizes;
    std::uint32_t file;
    std::uint64_t offset;
  };
  struct Port {
    std::uint32_t tensor;
    std::string name;
  };
  struct Operator {
    std::uint32_t code;
    std::string name;
    Words words;
  };

  explicit PlanWriter(WeightWriter& weights) : weights_(&weights) {}

  std::uint32_t input(const std::string& name, const Words& sizes);
  std::uint32_t output(const std::string& name, const Words& sizes);
  std::uint32_t arena(const Words& sizes);  // memory of its own
  std::uint32_t data(const std::vector<float>& values, const Words& sizes);
  std::uint32_t integers(const std::vector<std::int32_t>& values, const Words& sizes);
  std::uint32_t weight(const std::vector<float>& values, const Words& sizes);
  void add(std::uint32_t code, const std::string& name, const Words& words);

  Bytes finish() const;

  std::uint32_t version = 1, flags = 0;
  std::uint64_t arena_bytes = 0;
  std::vector<std::pair<std::string, std::uint64_t>> files;  // of the weights, if any were added
  std::vector<Tensor> tensors;
  std::vector<Port> inputs, outputs;
  std::vector<std::string> labels;
  std::vector<Operator> operators;
  Bytes data_bytes;

 private:
  WeightWriter* weights_;
  std::uint32_t constant(const void* values, std::size_t count, std::uint8_t type,
                         const Words& sizes);
};

struct BundleWriter {
  std::vector<std::pair<std::string, Bytes>> plans;  // by domain
  WeightWriter weights;

  Bytes index() const;
  static std::string plan_name(std::size_t domain) { return std::to_string(domain) + ".plan"; }
  // Makes the directory and its files.
  void write(const std::string& directory) const;
};

void write_file(const std::string& path, const Bytes& bytes);

// A bundle whose three domains use every operator; domains differ in their filters and heads. Input
// (1, 6, 8, 8), the batch is free; outputs (1, 4 + domain) and (1, 6, 16, 8).
BundleWriter small_bundle();

// A directory that is removed with all in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  std::string path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace mdprune
