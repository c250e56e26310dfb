#include "model.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "failure.h"
#include "index.h"

namespace mdprune {
namespace {

constexpr char kIndex[] = "index.bin";

// Runs f and says in its failures which file they are about.
template <typename F>
auto about(const std::string& file, F f) {
  try {
    return f();
  } catch (const Stale&) {
    throw;
  } catch (const Failure& failure) {
    throw Failure(failure.status(), file + ": " + failure.what());
  }
}

MappedFile map_of_size(const Directory& native, const std::string& name, std::uint64_t size) {
  MappedFile file = native.map(name);
  if (file.size() != size) {
    throw Stale(MDP_CORRUPT, name + " has " + std::to_string(file.size()) + " bytes instead of " +
                                 std::to_string(size));
  }
  return file;
}

std::shared_ptr<const Model> read_domains(const char* path, const Directory& native,
                                          const MappedFile& index) {
  auto model = std::make_shared<Model>();
  model->path = path;
  const WeightFiles weights = [&](const std::string& name,
                                  std::uint64_t size) -> const MappedFile& {
    const auto found = model->weights.find(name);
    if (found == model->weights.end()) {
      return model->weights.emplace(name, map_of_size(native, name, size)).first->second;
    }
    require(found->second.size() == size, "two plans differ in the size of a weight file");
    return found->second;
  };
  for (IndexEntry& entry : about(kIndex, [&] { return read_index(index); })) {
    MappedFile file = map_of_size(native, entry.plan, entry.plan_size);
    Plan plan = about(entry.plan, [&] { return read_plan(std::move(file), weights); });
    model->domains.push_back({std::move(entry.name), std::move(plan)});
  }
  return model;
}

std::shared_ptr<const Model> open_once(const char* path) {
  const Directory bundle(path);
  const Directory native = bundle.directory("native");
  const MappedFile index = native.map(kIndex);
  const auto replaced = [&] {
    return !native.holds(kIndex, index.identity()) ||
           !Directory(path).directory("native").is_same(native);
  };
  std::shared_ptr<const Model> model;
  try {
    model = read_domains(path, native, index);
  } catch (const Failure& failure) {
    if (replaced()) throw Stale(failure.status(), failure.what());
    throw Failure(failure.status(), failure.what());
  }
  // A bundle that was renamed away since is whole; an index that was replaced may speak of other
  // plans.
  if (!native.holds(kIndex, index.identity())) {
    throw Stale(MDP_IO, "the bundle keeps being replaced");
  }
  return model;
}

}  // namespace

mdp_memory Model::memory() const {
  mdp_memory memory{};
  for (const auto& file : weights) memory.weight_bytes += file.second.size();
  for (const Domain& domain : domains) {
    memory.plan_bytes += domain.plan.file.size();
    memory.arena_bytes = std::max(memory.arena_bytes, domain.plan.arena_bytes);
  }
  return memory;
}

std::shared_ptr<const Model> open_model(const char* path) {
  constexpr int kAttempts = 5;
  for (int attempt = 1;; ++attempt) {
    try {
      return open_once(path);
    } catch (const Stale&) {
      if (attempt == kAttempts) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace mdprune
