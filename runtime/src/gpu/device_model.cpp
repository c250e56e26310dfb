#include "device_model.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cuda/prepare.h"
#include "failure.h"
#include "prepare_domain.h"
#include "tilings.h"

namespace mdprune {
namespace {

// A convolution whose tables wait for their place on the device.
struct Bound {
  const cpu::Convolution* convolution;
  cuda::ConvolutionTables tables;
  std::size_t offset;
};

Bound make_tables(const PendingConvolution& pending, cuda::Type type, const std::uint8_t* weights,
                  DeviceTables& tables) {
  std::vector<const void*> addresses;
  for (const Operand& weight : pending.weights) addresses.push_back(weights + weight.offset);
  Bound bound{pending.convolution, cuda::prepare(*pending.convolution, type, addresses.data()), 0};
  if (bound.tables.bytes.empty()) {
    throw Failure(MDP_UNSUPPORTED, std::string("device cuda: ") + pending.name +
                                       ": a weight has more than 2^31 elements");
  }
  bound.offset = tables.copy(bound.tables.bytes.data(), bound.tables.bytes.size()).offset;
  bound.tables.bytes = {};
  return bound;
}

// The most that any tiling of a convolution takes.
std::size_t most_workspace(const cuda::Library& library, const cuda::Convolution& convolution,
                           int multiprocessors) {
  std::size_t most = 0;
  for (const cuda::Tiling& tiling : candidates(library, convolution, multiprocessors)) {
    most = std::max(most, library.workspace_bytes(convolution, tiling));
  }
  return most;
}

}  // namespace

DeviceModel::DeviceModel(const Model& model, const cuda::Library& library, int device,
                         cuda::Type type)
    : library_(library), device_(device), type_(type), weights_(type) {
  check(library, library.describe(device, &info_), "the device cannot be described");
  const DeviceHandle stream = make_stream(library);
  std::vector<std::vector<PendingConvolution>> pending;
  for (const Domain& domain : model.domains) {
    PreparedDomain prepared = prepare_domain(domain.plan, type, weights_, tables_);
    domains_.push_back(std::move(prepared.domain));
    pending.push_back(std::move(prepared.convolutions));
  }
  weights_.upload(library, stream.get());
  std::vector<std::vector<Bound>> bound(pending.size());
  for (std::size_t d = 0; d < pending.size(); ++d) {
    for (const PendingConvolution& one : pending[d]) {
      bound[d].push_back(make_tables(one, type, weights_.data(), tables_));
    }
  }
  tables_.upload(library, stream.get());
  workspace_bytes_ = cuda::kCounterBytes;
  for (std::size_t d = 0; d < bound.size(); ++d) {
    arena_bytes_ = std::max(arena_bytes_, domains_[d].arena_bytes);
    for (std::size_t i = 0; i < bound[d].size(); ++i) {
      const Bound& one = bound[d][i];
      cuda::Convolution& made = domains_[d].convolutions[i];
      made = cuda::bind(*one.convolution, type, one.tables, tables_.data() + one.offset);
      workspace_bytes_ =
          std::max(workspace_bytes_, most_workspace(library, made, info_.multiprocessors));
    }
  }
}

std::shared_ptr<DeviceModel> model_on_device(const Model& model, int device, cuda::Type type) {
  DeviceModels& cache = model.on_devices;
  const std::string key = std::to_string(device) + (type == cuda::kHalf ? " float16" : " float32");
  const std::lock_guard<std::mutex> lock(cache.mutex);
  std::weak_ptr<DeviceModel>& found = cache.models[key];
  std::shared_ptr<DeviceModel> made = found.lock();
  if (made == nullptr) {
    made = std::make_shared<DeviceModel>(model, cuda_library(), device, type);
    found = made;
  }
  return made;
}

}  // namespace mdprune
