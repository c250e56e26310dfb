// An opened bundle: plans of all domains over weight files that are mapped once.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "files.h"
#include "plan.h"

namespace mdprune {

struct Domain {
  std::string name;
  Plan plan;
};

class DeviceModel;

// What contexts of one model on one device share, by device and precision; gone with the last one.
struct DeviceModels {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<DeviceModel>> models;
};

struct Model {
  std::string path;
  std::map<std::string, MappedFile> weights;
  std::vector<Domain> domains;  // one at least
  mutable DeviceModels on_devices;

  mdp_memory memory() const;
};

// Throws Failure. A bundle that is replaced meanwhile is read again, so that the model is the old
// or the new one, never a mix.
std::shared_ptr<const Model> open_model(const char* path);

}  // namespace mdprune

struct mdp_model {
  std::shared_ptr<const mdprune::Model> shared;
};
