// A plan file, read and checked once: what one domain runs.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"
#include "mdprune.h"
#include "operators/operator.h"

namespace mdprune {

// Texts ended by NUL, as C wants them.
class Texts {
 public:
  explicit Texts(std::string_view all) : all_(all) {}
  const char* add(std::uint32_t start, std::uint32_t length);

 private:
  std::string_view all_;
  std::size_t copied_ = 0;
  std::vector<std::unique_ptr<char[]>> copies_;
};

struct Step {
  const char* name;
  const char* kind;
  std::unique_ptr<const Operator> operation;
  const cpu::Convolution* next;  // the convolution behind this one, or null
};

struct Plan {
  MappedFile file;
  Texts texts{{}};
  bool free_batch = false;
  std::size_t arena_bytes = 0;
  std::vector<mdp_tensor> inputs;
  std::vector<mdp_tensor> outputs;
  std::vector<const char*> labels;
  std::vector<Step> steps;
};

// Returns the weight file of a name; it stays mapped as long as the plan lives.
using WeightFiles = std::function<const MappedFile&(const std::string& name, std::uint64_t size)>;

Plan read_plan(MappedFile file, const WeightFiles& weight_files);

}  // namespace mdprune
