// Makes plug-ins of fields; TensorRT finds it in the library by `getCreators`.

#pragma once

#include <NvInferRuntime.h>

namespace mdprune::tensorrt {

class GatherConvCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  GatherConvCreator();

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  nvinfer1::PluginFieldCollection names_;
};

}  // namespace mdprune::tensorrt
