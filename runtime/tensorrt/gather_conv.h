// The plug-in. An object knows its node; one that is attached to an execution context also holds
// the weights and tables on the device, so that running it only launches.

#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/library.h"
#include "cuda/prepare.h"
#include "node.h"
#include "weights.h"

namespace mdprune::tensorrt {

constexpr const char* kName = "GatherConv";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "mdprune";

// Memory on the device that is freed with the object.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes();

  // Throws std::runtime_error. Returns when the bytes are there.
  const std::uint8_t* upload(const std::vector<std::uint8_t>& bytes);

 private:
  void* memory_ = nullptr;
};

// What the execution of a node needs on the device.
class OnDevice {
 public:
  OnDevice(const Node& node, cuda::Type type);  // throws std::runtime_error

  const cuda::Convolution& convolution() const { return convolution_; }
  int multiprocessors() const { return multiprocessors_; }

 private:
  std::vector<DeviceWeights> weights_;
  DeviceBytes tables_;
  cuda::Convolution convolution_{};
  int multiprocessors_ = 0;
};

class GatherConv final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit GatherConv(Fields fields);  // throws std::runtime_error
  GatherConv(const GatherConv& other);
  GatherConv& operator=(const GatherConv&) = delete;

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t inputs,
                               const nvinfer1::DynamicPluginTensorDesc* out,
                               std::int32_t outputs) noexcept override;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* to, std::int32_t outputs,
                                  const nvinfer1::DataType* from,
                                  std::int32_t inputs) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* from, std::int32_t inputs,
                               const nvinfer1::DimsExprs* shapes, std::int32_t shape_inputs,
                               nvinfer1::DimsExprs* to, std::int32_t outputs,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t at, const nvinfer1::DynamicPluginTensorDesc* all,
                                 std::int32_t inputs, std::int32_t outputs) noexcept override;
  std::int32_t getNbOutputs() const noexcept override { return 1; }
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t inputs,
                               const nvinfer1::DynamicPluginTensorDesc* out,
                               std::int32_t outputs) const noexcept override;
  std::int32_t getNbTactics() noexcept override;
  std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override { return shared_->timing_key.c_str(); }

  std::int32_t setTactic(std::int32_t tactic) noexcept override;
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, std::int32_t inputs,
                             const nvinfer1::PluginTensorDesc* out,
                             std::int32_t outputs) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                       const void* const* from, void* const* to, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // What all clones share.
  struct Shared {
    explicit Shared(Fields given);
    Fields fields;
    Node node;
    std::string timing_key;
  };

  void fit(const nvinfer1::Dims& x);
  std::vector<cuda::Tiling> tilings() const;

  std::shared_ptr<const Shared> shared_;
  std::int32_t type_ = -1;  // cuda::Type, or -1 as long as it is not known
  std::int32_t tactic_ = 0;
  nvinfer1::Dims optimum_{};  // of x, what tactics are for
  std::vector<nvinfer1::PluginField> serialized_;
  nvinfer1::PluginFieldCollection collection_{};

  // Of an object that is attached to a context.
  std::unique_ptr<OnDevice> device_;
  cuda::Convolution convolution_{};
  cuda::Tiling tiling_{};
  bool residual_ = false;
};

}  // namespace mdprune::tensorrt
