#include "mutate.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "mdprune.h"

namespace mdprune {
namespace {

constexpr std::size_t kMostElements = std::size_t{1} << 22;
constexpr std::size_t kMostArena = std::size_t{1} << 28;

// Buffers for all inputs or outputs of a domain; false if they would be large.
bool make_buffers(const mdp_model* model, std::size_t domain, bool outputs,
                  std::vector<std::vector<float>>& buffers) {
  const std::size_t count =
      outputs ? mdp_model_output_count(model, domain) : mdp_model_input_count(model, domain);
  for (std::size_t i = 0; i < count; ++i) {
    mdp_tensor tensor;
    const mdp_status status = outputs ? mdp_model_output(model, domain, i, &tensor)
                                      : mdp_model_input(model, domain, i, &tensor);
    if (status != MDP_OK || tensor.elements > kMostElements) return false;
    buffers.emplace_back(tensor.elements, 0.5F);
  }
  return true;
}

void run_domain(mdp_model* model, mdp_context* context, std::size_t domain) {
  for (std::size_t i = 0; i < mdp_model_label_count(model, domain); ++i) {
    if (std::strlen(mdp_model_label(model, domain, i)) > (std::size_t{1} << 30)) std::abort();
  }
  std::vector<std::vector<float>> inputs, outputs;
  if (!make_buffers(model, domain, false, inputs) || !make_buffers(model, domain, true, outputs)) {
    return;
  }
  std::vector<const float*> from;
  std::vector<float*> to;
  for (const auto& buffer : inputs) from.push_back(buffer.data());
  for (auto& buffer : outputs) to.push_back(buffer.data());
  mdp_context_select_domain(context, domain);
  mdp_context_run(context, 1, from.data(), to.data());
}

}  // namespace

bool open_and_run(const std::string& path) {
  char message[64];
  mdp_model* model = nullptr;
  if (mdp_model_open(path.c_str(), &model, message, sizeof(message)) != MDP_OK) return false;
  mdp_memory memory;
  mdp_model_memory(model, &memory);
  mdp_context* context = nullptr;
  if (memory.arena_bytes < kMostArena &&
      mdp_context_create(model, nullptr, &context, message, sizeof(message)) == MDP_OK) {
    for (std::size_t i = 0; i < mdp_model_domain_count(model); ++i) run_domain(model, context, i);
  }
  mdp_context_destroy(context);
  mdp_model_close(model);
  return true;
}

Mutator::Mutator(const char* bundle) {
  const std::string path = directory_.path("bundle");
  if (bundle != nullptr) {
    std::filesystem::create_directory(path);
    std::filesystem::copy(std::string(bundle) + "/native", path + "/native");
  } else {
    small_bundle().write(path);
  }
  for (const auto& entry : std::filesystem::directory_iterator(path + "/native")) {
    if (entry.path().filename().string().rfind("weights", 0) == 0) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    files_.emplace_back(entry.path(), Bytes(std::istreambuf_iterator<char>(file), {}));
  }
  std::sort(files_.begin(), files_.end());
}

bool Mutator::try_one(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % limit); };
  const auto& [path, good] = files_[below(files_.size())];
  Bytes bytes = good;
  // Most of a plan is constants, where nothing is to be broken: prefer its tables.
  const auto place = [&] {
    return below(below(4) != 0 ? std::min<std::size_t>(bytes.size(), 3000) : bytes.size());
  };
  for (std::size_t times = 1 + below(3); times > 0 && bytes.size() > 8; --times) {
    const std::size_t at = place();
    const std::size_t word = std::min(at / 4 * 4, bytes.size() - 4);
    const std::uint32_t special[] = {0,  1,          2,          3,          16,
                                     64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE};
    switch (below(6)) {
      case 0: bytes[at] ^= static_cast<std::uint8_t>(1U << below(8)); break;
      case 1: bytes[at] = static_cast<std::uint8_t>(random()); break;
      case 2: std::memcpy(&bytes[word], &special[below(10)], 4); break;
      case 3:
        std::swap_ranges(&bytes[word], &bytes[word] + 4,
                         &bytes[std::min(place() / 4 * 4, bytes.size() - 4)]);
        break;
      case 4: bytes.resize(at); break;
      default: bytes.insert(bytes.begin() + long(at), 1 + below(8), std::uint8_t(random())); break;
    }
  }
  write_file(path, bytes);
  const bool opened = open_and_run(directory_.path("bundle"));
  write_file(path, good);
  return opened;
}

}  // namespace mdprune
