// Runs one node on the emulated device, for the tests in Python, which know the right answer:
//
//   run_node LIBRARY CASE OUTPUT
//
// CASE: u32 count of fields, then per field u32 length of its name, the name, u32 type (TensorRT's
// number), u32 elements, the data; then u32 type (0 float, 1 half), u32 x 4 sizes of x, u32 x 4
// sizes of y, u32 whether there is a residual, and the bytes of x and of the residual as the
// plug-in takes them. OUTPUT: the bytes of y, of every tactic of the plug-in and of what is made of
// its serialised fields. The bundle is named by MDPRUNE_BUNDLE.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "cuda/library.h"

namespace {

using nvinfer1::PluginField;

[[noreturn]] void fail(const char* text) {
  std::fprintf(stderr, "run_node: %s\n", text);
  std::exit(1);
}

// The emulated device, which is inside the plug-in's library.
const mdprune::cuda::Library* device = nullptr;

class DeviceMemory {
 public:
  explicit DeviceMemory(const std::vector<char>& bytes) : bytes_(bytes.size()) {
    if (device->allocate(&memory_, bytes_ + 1) != 0) fail("allocate");
    if (bytes.empty()) return;
    if (device->to_device(memory_, bytes.data(), bytes_, nullptr) != 0) fail("to_device");
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { device->release(memory_); }

  void* get() const { return memory_; }
  std::vector<char> read() const {
    std::vector<char> bytes(bytes_);
    if (device->to_host(bytes.data(), memory_, bytes_, nullptr) != 0) fail("to_host");
    return bytes;
  }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
};

struct Reader {
  std::ifstream file;

  std::uint32_t number() {
    std::uint32_t value = 0;
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::vector<char> bytes(std::size_t count) {
    std::vector<char> read(count);
    file.read(read.data(), static_cast<std::streamsize>(count));
    if (!file) fail("the case is cut off");
    return read;
  }
};

// Sizes of x and y, what the plug-in gets and gives.
struct Run {
  nvinfer1::PluginTensorDesc in[2]{}, out{};
  std::int32_t inputs = 1;
  std::vector<char> x, residual;
  std::size_t y_bytes = 0;

  std::vector<char> operator()(nvinfer1::IPluginV3& plugin) const {
    using nvinfer1::PluginCapabilityType;
    auto* const build = static_cast<nvinfer1::IPluginV3OneBuild*>(
        plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
    nvinfer1::DynamicPluginTensorDesc all[3]{};
    for (int i = 0; i < inputs; ++i) all[i] = {in[i], in[i].dims, in[i].dims, in[i].dims};
    all[inputs] = {out, out.dims, out.dims, out.dims};
    for (int i = 0; i <= inputs; ++i) {
      if (!build->supportsFormatCombination(i, all, inputs, 1)) fail("the format is refused");
    }
    if (build->configurePlugin(all, inputs, all + inputs, 1) != 0) fail("configurePlugin");
    const DeviceMemory workspace(
        std::vector<char>(build->getWorkspaceSize(all, inputs, all + inputs, 1), 7));
    const DeviceMemory in_x(x), in_residual(residual);
    auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime->attachToContext(nullptr));
    if (attached == nullptr) fail("attachToContext");
    auto* const runs = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::vector<std::int32_t> tactics(static_cast<std::size_t>(build->getNbTactics()));
    const auto count = static_cast<std::int32_t>(tactics.size());
    if (build->getValidTactics(tactics.data(), count) != 0) fail("getValidTactics");
    tactics.push_back(0);
    std::vector<char> given, all_y;
    for (const std::int32_t tactic : tactics) {
      if (runs->setTactic(tactic) != 0) fail("setTactic");
      if (runs->onShapeChange(in, inputs, &out, 1) != 0) fail("onShapeChange");
      const DeviceMemory y(std::vector<char>(y_bytes, 0x55));
      const void* const from[] = {in_x.get(), in_residual.get()};
      void* const to[] = {y.get()};
      if (runs->enqueue(in, &out, from, to, workspace.get(), nullptr) != 0) fail("enqueue");
      all_y = y.read();
      given.insert(given.end(), all_y.begin(), all_y.end());
    }
    return given;
  }
};

nvinfer1::Dims dims(Reader& reader) {
  nvinfer1::Dims read{};
  read.nbDims = 4;
  for (int i = 0; i < 4; ++i) read.d[i] = static_cast<std::int32_t>(reader.number());
  return read;
}

std::size_t bytes_of(const nvinfer1::Dims& d, bool half) {
  const auto channels = static_cast<std::size_t>(half ? (d.d[1] + 7) / 8 * 8 : d.d[1]);
  const auto positions = static_cast<std::size_t>(d.d[0] * d.d[2] * d.d[3]);
  return positions * channels * (half ? 2 : 4);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) fail("usage: run_node LIBRARY CASE OUTPUT");
  void* const library = ::dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) fail(::dlerror());
  using Entry = const mdprune::cuda::Library* (*)(std::uint32_t);
  const auto entry = reinterpret_cast<Entry>(::dlsym(library, "mdprune_cuda_library"));
  device = entry == nullptr ? nullptr : entry(mdprune::cuda::kLibraryVersion);
  if (device == nullptr) fail("the library has no emulated device");
  nvinfer1::IPluginRegistry* const registry = getPluginRegistry();
  if (registry->loadLibrary(argv[1]) == nullptr) fail("the library cannot be loaded");
  auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(
      registry->getCreator("GatherConv", "1", "mdprune"));
  if (creator == nullptr) fail("the library has no GatherConv");

  Reader reader{std::ifstream(argv[2], std::ios::binary)};
  std::vector<std::string> names(reader.number());
  std::vector<std::vector<char>> data(names.size());
  std::vector<PluginField> fields;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::vector<char> name = reader.bytes(reader.number());
    names[i].assign(name.begin(), name.end());
    const auto type = static_cast<nvinfer1::PluginFieldType>(reader.number());
    const std::uint32_t count = reader.number();
    data[i] = reader.bytes(count * (type == nvinfer1::PluginFieldType::kCHAR ? 1 : 4));
    fields.emplace_back(names[i].c_str(), data[i].data(), type, static_cast<std::int32_t>(count));
  }
  Run run;
  const bool half = reader.number() != 0;
  for (nvinfer1::PluginTensorDesc* each : {&run.in[0], &run.in[1], &run.out}) {
    each->type = half ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kFLOAT;
    each->format = half ? nvinfer1::TensorFormat::kHWC8 : nvinfer1::TensorFormat::kHWC;
  }
  run.in[0].dims = dims(reader);
  run.out.dims = run.in[1].dims = dims(reader);
  run.inputs = reader.number() != 0 ? 2 : 1;
  run.y_bytes = bytes_of(run.out.dims, half);
  run.x = reader.bytes(bytes_of(run.in[0].dims, half));
  run.residual = reader.bytes(run.inputs == 2 ? run.y_bytes : 0);

  const nvinfer1::PluginFieldCollection given{static_cast<std::int32_t>(fields.size()),
                                              fields.data()};
  const std::unique_ptr<nvinfer1::IPluginV3> made(
      creator->createPlugin("node", &given, nvinfer1::TensorRTPhase::kBUILD));
  if (made == nullptr) fail("createPlugin");
  std::vector<char> y = run(*made);
  auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
      made->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
  const std::unique_ptr<nvinfer1::IPluginV3> again(creator->createPlugin(
      "node", runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
  if (again == nullptr) fail("createPlugin from serialised fields");
  const std::vector<char> second = run(*again);
  y.insert(y.end(), second.begin(), second.end());
  std::ofstream(argv[3], std::ios::binary).write(y.data(), static_cast<std::streamsize>(y.size()));
}
