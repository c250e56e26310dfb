#include "creator.h"

#include <cstdint>
#include <exception>

#include "gather_conv.h"
#include "log.h"
#include "mdprune_tensorrt.h"
#include "weights.h"

#define MDPRUNE_EXPORT __attribute__((visibility("default")))

namespace mdprune::tensorrt {

GatherConvCreator::GatherConvCreator()
    : names_{static_cast<std::int32_t>(field_names().size()), field_names().data()} {}

nvinfer1::IPluginV3* GatherConvCreator::createPlugin(const char*,
                                                     const nvinfer1::PluginFieldCollection* fields,
                                                     nvinfer1::TensorRTPhase) noexcept {
  try {
    if (fields == nullptr) return nullptr;
    return new GatherConv(read_fields(*fields));
  } catch (const std::exception& error) {
    log_error(error.what());
    return nullptr;
  }
}

const char* GatherConvCreator::getPluginName() const noexcept { return kName; }
const char* GatherConvCreator::getPluginVersion() const noexcept { return kVersion; }
const char* GatherConvCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace mdprune::tensorrt

extern "C" MDPRUNE_EXPORT int mdprune_tensorrt_add_bundle(const char* directory) {
  return directory != nullptr && mdprune::tensorrt::add_bundle(directory) ? 0 : -1;
}

// What IPluginRegistry::loadLibrary asks a plug-in library for.

extern "C" MDPRUNE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  mdprune::tensorrt::set_logger_finder(finder);
}

extern "C" MDPRUNE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& count) {
  static mdprune::tensorrt::GatherConvCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
