#include "gather_conv.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "log.h"

namespace mdprune::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr std::int32_t kFailed = -1;
constexpr std::int32_t kRank = 4;
constexpr std::int32_t kMostTactics = 8;
// Counters and partial sums; tilings that need more are not taken. TensorRT gives all layers of an
// engine the same memory.
constexpr std::size_t kWorkspace = cuda::kCounterBytes + (std::size_t{4} << 20);

// In TensorRT's channels-last formats the channels are padded: to 8 in half, not in float.
std::size_t pitch(std::size_t channels, cuda::Type type) {
  return type == cuda::kHalf ? (channels + 7) / 8 * 8 : channels;
}

std::int32_t known(DataType type) {
  if (type == DataType::kFLOAT) return cuda::kFloat;
  return type == DataType::kHALF ? static_cast<std::int32_t>(cuda::kHalf) : -1;
}

// A tactic is a tiling in one positive number.
std::int32_t tactic_of(cuda::Tiling tiling) { return (tiling.tile + 1) << 16 | tiling.splits; }

bool fits(const cuda::Convolution& c, cuda::Tiling tiling) {
  return launchers().workspace_bytes(c, tiling) <= kWorkspace;
}

// The node as the kernels' preparation takes it; `slabs` must stay.
cpu::Convolution described(const Node& node, std::vector<cpu::Slab>& slabs) {
  for (const NodeSlab& from : node.slabs) {
    cpu::Slab slab{};
    slab.rows = from.rows;
    slab.filters = from.filters;
    slab.bits = from.bits;
    slab.row_bits = from.row_bits;
    slab.used_rows = from.used_rows;
    slabs.push_back(slab);
  }
  cpu::Convolution c{};
  c.batch = 1;
  c.window = node.window(node.kernel[0], node.kernel[1]);
  c.groups = 1;
  c.in_channels = node.channels;
  c.filters = c.stored_filters = node.filters;
  c.reduction = node.reduction;
  c.index = node.index;
  c.slabs = slabs.data();
  c.slab_count = slabs.size();
  c.activation = node.activation;
  return c;
}

// Appends numbers padded with zeros to `count`; returns where they begin.
std::size_t append(std::vector<std::uint8_t>& bytes, const float* values, std::size_t given,
                   std::size_t count) {
  const std::size_t begin = (bytes.size() + 15) / 16 * 16;
  bytes.resize(begin + count * sizeof(float));
  std::memcpy(bytes.data() + begin, values, given * sizeof(float));
  return begin;
}

// Runs what may throw; says what went wrong.
template <typename Body>
std::int32_t guarded(const Body& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    log_error(error.what());
    return kFailed;
  }
}

}  // namespace

DeviceBytes::~DeviceBytes() {
  if (memory_ != nullptr) launchers().release(memory_);
}

const std::uint8_t* DeviceBytes::upload(const std::vector<std::uint8_t>& bytes) {
  check(launchers().allocate(&memory_, bytes.size()), "allocating tables");
  void* stream = nullptr;
  check(launchers().create_stream(&stream), "creating a stream");
  int error = launchers().to_device(memory_, bytes.data(), bytes.size(), stream);
  if (error == 0) error = launchers().wait(stream);
  const int last = launchers().destroy_stream(stream);
  check(error != 0 ? error : last, "uploading tables");
  return static_cast<const std::uint8_t*>(memory_);
}

OnDevice::OnDevice(const Node& node, cuda::Type type) {
  int device = 0;
  cuda::DeviceInfo info{};
  check(launchers().current_device(&device), "asking for the device");
  check(launchers().describe(device, &info), "asking for the device");
  multiprocessors_ = info.multiprocessors;
  for (const WeightFile& file : node.files) weights_.emplace_back(file, type);
  std::vector<const void*> addresses;
  for (const NodeSlab& slab : node.slabs) addresses.push_back(weights_[slab.file].at(slab.offset));
  std::vector<cpu::Slab> slabs;
  const cpu::Convolution c = described(node, slabs);
  cuda::ConvolutionTables tables = cuda::prepare(c, type, addresses.data());
  if (tables.bytes.empty()) throw std::runtime_error("GatherConv: its weights are too large");
  // What pads the channels of y is written too: its weights are multiplied with a scale of zero.
  const std::size_t filters = pitch(node.filters, type);
  std::vector<std::uint8_t> bytes = tables.bytes;
  const std::size_t scale = append(bytes, node.scale, node.filters, filters);
  const std::size_t shift = append(bytes, node.shift, node.filters, filters);
  const std::uint8_t* const base = tables_.upload(bytes);
  convolution_ = cuda::bind(c, type, tables, base);
  convolution_.in_channels = pitch(node.channels, type);
  convolution_.filters = convolution_.residual_channels = filters;
  convolution_.scale = reinterpret_cast<const float*>(base + scale);
  convolution_.shift = reinterpret_cast<const float*>(base + shift);
}

GatherConv::Shared::Shared(Fields given) : fields(std::move(given)), node(fields) {
  std::ostringstream key;
  key << "mdprune " << node.channels << ' ' << node.reduction << ' ' << node.filters << ' '
      << node.slabs.size() << ' ' << node.activation.code;
  for (std::size_t i = 0; i < 2; ++i) {
    key << ' ' << node.kernel[i] << ' ' << node.stride[i] << ' ' << node.dilation[i] << ' '
        << node.pad[i] << ' ' << node.pad[i + 2];
  }
  timing_key = key.str();
}

GatherConv::GatherConv(Fields fields) : shared_(std::make_shared<Shared>(std::move(fields))) {
  if (!shared_->fields.type.empty()) type_ = shared_->fields.type[0];
  if (type_ != -1 && type_ != cuda::kFloat && type_ != cuda::kHalf) {
    throw std::runtime_error("GatherConv: there is no such type");
  }
}

GatherConv::GatherConv(const GatherConv& other)
    : shared_(other.shared_),
      type_(other.type_),
      tactic_(other.tactic_),
      optimum_(other.optimum_) {}

nvinfer1::IPluginCapability* GatherConv::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* GatherConv::clone() noexcept {
  GatherConv* made = nullptr;
  guarded([&] { made = new GatherConv(*this); });
  return made;
}

std::int32_t GatherConv::configurePlugin(const DynamicPluginTensorDesc* in, std::int32_t inputs,
                                         const DynamicPluginTensorDesc*, std::int32_t) noexcept {
  if (inputs < 1 || inputs > 2) return kFailed;
  type_ = known(in[0].desc.type);
  optimum_ = in[0].opt;
  return type_ < 0 ? kFailed : 0;
}

std::int32_t GatherConv::getOutputDataTypes(DataType* to, std::int32_t outputs,
                                            const DataType* from,
                                            std::int32_t inputs) const noexcept {
  if (outputs != 1 || inputs < 1 || inputs > 2 || known(from[0]) < 0) return kFailed;
  if (inputs == 2 && from[1] != from[0]) return kFailed;
  to[0] = from[0];
  return 0;
}

std::int32_t GatherConv::getOutputShapes(const nvinfer1::DimsExprs* from, std::int32_t inputs,
                                         const nvinfer1::DimsExprs*, std::int32_t,
                                         nvinfer1::DimsExprs* to, std::int32_t outputs,
                                         nvinfer1::IExprBuilder& builder) noexcept {
  const Node& node = shared_->node;
  if (outputs != 1 || inputs < 1 || inputs > 2 || from[0].nbDims != kRank) return kFailed;
  const nvinfer1::IDimensionExpr& channels = *from[0].d[1];
  if (channels.isConstant() &&
      channels.getConstantValue() != static_cast<std::int64_t>(node.channels)) {
    log_error("GatherConv: x has another number of channels");
    return kFailed;
  }
  const auto constant = [&](std::size_t value) {
    return builder.constant(static_cast<std::int64_t>(value));
  };
  to[0].nbDims = kRank;
  to[0].d[0] = from[0].d[0];
  to[0].d[1] = constant(node.filters);
  for (std::size_t axis = 0; axis < 2; ++axis) {
    // (size + pads - reach) / stride + 1
    const std::size_t reach = (node.kernel[axis] - 1) * node.dilation[axis] + 1;
    const auto* const padded = builder.operation(DimensionOperation::kSUM, *from[0].d[2 + axis],
                                                 *constant(node.pad[axis] + node.pad[axis + 2]));
    const auto* const left = builder.operation(DimensionOperation::kSUB, *padded, *constant(reach));
    const auto* const steps =
        builder.operation(DimensionOperation::kFLOOR_DIV, *left, *constant(node.stride[axis]));
    to[0].d[2 + axis] = builder.operation(DimensionOperation::kSUM, *steps, *constant(1));
  }
  return 0;
}

bool GatherConv::supportsFormatCombination(std::int32_t at, const DynamicPluginTensorDesc* all,
                                           std::int32_t inputs, std::int32_t outputs) noexcept {
  if (inputs < 1 || inputs > 2 || outputs != 1) return false;
  const std::int32_t type = known(all[0].desc.type);
  // Padding channels of a residual hold anything; they would get into those of y.
  if (type == cuda::kHalf && inputs == 2 && shared_->node.filters % 8 != 0) return false;
  const TensorFormat format = type == cuda::kHalf ? TensorFormat::kHWC8 : TensorFormat::kHWC;
  return type >= 0 && all[at].desc.type == all[0].desc.type && all[at].desc.format == format;
}

std::size_t GatherConv::getWorkspaceSize(const DynamicPluginTensorDesc*, std::int32_t,
                                         const DynamicPluginTensorDesc*,
                                         std::int32_t) const noexcept {
  return kWorkspace;
}

// What is worth timing at the shape that the engine is optimised for.
std::vector<cuda::Tiling> GatherConv::tilings() const {
  if (type_ < 0 || optimum_.nbDims != kRank) return {};
  const Node& node = shared_->node;
  const auto type = static_cast<cuda::Type>(type_);
  std::vector<cpu::Slab> slabs;
  cpu::Convolution c = described(node, slabs);
  c.batch = static_cast<std::size_t>(optimum_.d[0]);
  c.window =
      node.window(static_cast<std::size_t>(optimum_.d[2]), static_cast<std::size_t>(optimum_.d[3]));
  const std::vector<const void*> nowhere(slabs.size(), nullptr);
  const cuda::Convolution bound =
      cuda::bind(c, type, cuda::prepare(c, type, nowhere.data()), nullptr);
  int device = 0;
  cuda::DeviceInfo info{};
  check(launchers().current_device(&device), "asking for the device");
  check(launchers().describe(device, &info), "asking for the device");
  std::vector<cuda::Tiling> found(kMostTactics);
  found.resize(std::min(found.size(), launchers().candidates(bound, info.multiprocessors,
                                                             found.data(), found.size())));
  found.erase(std::remove_if(found.begin(), found.end(),
                             [&](cuda::Tiling tiling) { return !fits(bound, tiling); }),
              found.end());
  return found;
}

std::int32_t GatherConv::getNbTactics() noexcept {
  std::int32_t count = 0;
  guarded([&] { count = static_cast<std::int32_t>(tilings().size()); });
  return count;
}

std::int32_t GatherConv::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
  return guarded([&] {
    const std::vector<cuda::Tiling> found = tilings();
    if (found.size() != static_cast<std::size_t>(count)) {
      throw std::runtime_error("GatherConv: there is another number of tactics");
    }
    std::transform(found.begin(), found.end(), tactics, tactic_of);
  });
}

std::int32_t GatherConv::setTactic(std::int32_t tactic) noexcept {
  tactic_ = tactic;
  return 0;
}

// Sets sizes and tiling of the convolution for a shape of x.
void GatherConv::fit(const nvinfer1::Dims& x) {
  const Node& node = shared_->node;
  const bool valid = x.nbDims == kRank && x.d[0] > 0 && x.d[2] > 0 && x.d[3] > 0 &&
                     x.d[1] == static_cast<std::int64_t>(node.channels);
  if (!valid) throw std::runtime_error("GatherConv: x has another shape than the node takes");
  convolution_ = device_->convolution();
  convolution_.batch = static_cast<std::size_t>(x.d[0]);
  convolution_.window =
      node.window(static_cast<std::size_t>(x.d[2]), static_cast<std::size_t>(x.d[3]));
  if (convolution_.window.output[1] == 0 || convolution_.window.output[2] == 0) {
    throw std::runtime_error("GatherConv: its window is larger than x");
  }
  std::vector<cuda::Tiling> found(kMostTactics);
  found.resize(
      std::min(found.size(), launchers().candidates(convolution_, device_->multiprocessors(),
                                                    found.data(), found.size())));
  const auto timed = std::find_if(found.begin(), found.end(), [&](cuda::Tiling tiling) {
    return tactic_of(tiling) == tactic_ && fits(convolution_, tiling);
  });
  const auto first = std::find_if(found.begin(), found.end(),
                                  [&](cuda::Tiling tiling) { return fits(convolution_, tiling); });
  if (first == found.end()) throw std::runtime_error("GatherConv: there is no kernel for it");
  tiling_ = timed != found.end() ? *timed : *first;
}

std::int32_t GatherConv::onShapeChange(const PluginTensorDesc* in, std::int32_t inputs,
                                       const PluginTensorDesc* out, std::int32_t outputs) noexcept {
  return guarded([&] {
    const std::int32_t type = known(in[0].type);
    if (type < 0 || inputs < 1 || inputs > 2 || outputs != 1 || out[0].type != in[0].type) {
      throw std::runtime_error("GatherConv: its inputs and output are of other types");
    }
    if (device_ == nullptr || type != type_) {
      device_ = std::make_unique<OnDevice>(shared_->node, static_cast<cuda::Type>(type));
      type_ = type;
    }
    fit(in[0].dims);
    const kinds::Window& window = convolution_.window;
    const auto has_shape_of_y = [&](const nvinfer1::Dims& d) {
      return d.nbDims == kRank && d.d[0] == in[0].dims.d[0] &&
             d.d[1] == static_cast<std::int64_t>(shared_->node.filters) &&
             d.d[2] == static_cast<std::int64_t>(window.output[1]) &&
             d.d[3] == static_cast<std::int64_t>(window.output[2]);
    };
    residual_ = inputs == 2;
    if (!has_shape_of_y(out[0].dims) || (residual_ && !has_shape_of_y(in[1].dims))) {
      throw std::runtime_error("GatherConv: its output or residual has another shape");
    }
  });
}

std::int32_t GatherConv::enqueue(const PluginTensorDesc*, const PluginTensorDesc*,
                                 const void* const* from, void* const* to, void* workspace,
                                 cudaStream_t stream) noexcept {
  return guarded([&] {
    if (device_ == nullptr) throw std::runtime_error("GatherConv: it was given no shape");
    cuda::Convolution c = convolution_;
    c.x = from[0];
    c.residual = residual_ ? from[1] : nullptr;
    c.y = to[0];
    // Other layers leave something else in the counters of the workspace.
    if (tiling_.splits > 1) {
      check(launchers().clear(workspace, cuda::kCounterBytes, stream), "clearing counters");
    }
    const cuda::Launch launch{stream, device_->multiprocessors(), workspace, kWorkspace};
    check(launchers().convolution(c, tiling_, launch), "launching");
  });
}

nvinfer1::IPluginV3* GatherConv::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  GatherConv* attached = nullptr;
  guarded([&] {
    auto made = std::make_unique<GatherConv>(*this);
    if (type_ >= 0) {
      const auto type = static_cast<cuda::Type>(type_);
      made->device_ = std::make_unique<OnDevice>(shared_->node, type);
    }
    attached = made.release();
  });
  return attached;
}

const nvinfer1::PluginFieldCollection* GatherConv::getFieldsToSerialize() noexcept {
  const std::int32_t error = guarded([&] {
    serialized_ = write_fields(shared_->fields);
    serialized_.erase(std::remove_if(serialized_.begin(), serialized_.end(),
                                     [](const nvinfer1::PluginField& field) {
                                       return std::strcmp(field.name, "type") == 0;
                                     }),
                      serialized_.end());
    serialized_.emplace_back("type", &type_, nvinfer1::PluginFieldType::kINT32, 1);
    collection_.nbFields = static_cast<std::int32_t>(serialized_.size());
    collection_.fields = serialized_.data();
  });
  return error == 0 ? &collection_ : nullptr;
}

}  // namespace mdprune::tensorrt
