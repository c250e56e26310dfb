#include "engine.h"

#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace mdprune::tensorrt {
namespace {

constexpr std::size_t kWarmUp = 20;

void check(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// From TensorRT 11 on every network is strongly typed.
std::uint32_t network_flags() {
#if NV_TENSORRT_MAJOR >= 11
  return 0;
#else
  using Flag = nvinfer1::NetworkDefinitionCreationFlag;
  return 1U << static_cast<std::uint32_t>(Flag::kSTRONGLY_TYPED);
#endif
}

// The shape with a free first axis set to the batch.
nvinfer1::Dims with_batch(nvinfer1::Dims dims, std::int64_t batch) {
  if (dims.nbDims > 0 && dims.d[0] < 0) dims.d[0] = batch;
  for (std::int32_t i = 0; i < dims.nbDims; ++i) {
    check(dims.d[i] >= 0, "an input has a free size beside the batch");
  }
  return dims;
}

void set_profile(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config,
                 const nvinfer1::INetworkDefinition& network, std::int64_t batch) {
  nvinfer1::IOptimizationProfile* const profile = builder.createOptimizationProfile();
  bool is_free = false;
  for (std::int32_t i = 0; i < network.getNbInputs(); ++i) {
    const nvinfer1::ITensor& input = *network.getInput(i);
    const nvinfer1::Dims dims = input.getDimensions();
    is_free = is_free || (dims.nbDims > 0 && dims.d[0] < 0);
    using nvinfer1::OptProfileSelector;
    const char* const name = input.getName();
    profile->setDimensions(name, OptProfileSelector::kMIN, with_batch(dims, 1));
    profile->setDimensions(name, OptProfileSelector::kOPT, with_batch(dims, batch));
    profile->setDimensions(name, OptProfileSelector::kMAX, with_batch(dims, batch));
  }
  check(is_free || batch == 1, "the batch is fixed by the network");
  if (is_free) config.addOptimizationProfile(profile);
}

void load_plugins(nvinfer1::IPluginRegistry& registry, const std::string& library) {
  if (library.empty()) return;
  check(registry.loadLibrary(library.c_str()) != nullptr, library + ": cannot be loaded");
}

}  // namespace

void Logger::log(Severity severity, const char* text) noexcept {
  if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", text);
}

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  check(static_cast<bool>(file), path + ": cannot be read");
  return data;
}

void write_file(const std::string& path, const void* data, std::size_t size) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    throw std::runtime_error(path + ": cannot be written");
  }
}

std::vector<char> build(const BuildOptions& options, Logger& logger) {
  const std::unique_ptr<nvinfer1::IBuilder> builder(nvinfer1::createInferBuilder(logger));
  check(builder != nullptr, "TensorRT cannot be started");
  load_plugins(builder->getPluginRegistry(), options.plugins);
  const std::unique_ptr<nvinfer1::INetworkDefinition> network(
      builder->createNetworkV2(network_flags()));
  const std::unique_ptr<nvonnxparser::IParser> parser(nvonnxparser::createParser(*network, logger));
  const auto severity = static_cast<int>(nvinfer1::ILogger::Severity::kWARNING);
  check(parser->parseFromFile(options.model.c_str(), severity),
        options.model + ": cannot be parsed");
  const std::unique_ptr<nvinfer1::IBuilderConfig> config(builder->createBuilderConfig());
  set_profile(*builder, *config, *network, options.batch);
  std::unique_ptr<nvinfer1::ITimingCache> cache;
  if (!options.timing_cache.empty()) {
    std::vector<char> known;
    if (std::ifstream(options.timing_cache).good()) known = read_file(options.timing_cache);
    cache.reset(config->createTimingCache(known.data(), known.size()));
    check(cache != nullptr && config->setTimingCache(*cache, false),
          options.timing_cache + ": is of another GPU or version of TensorRT");
  }
  const std::unique_ptr<nvinfer1::IHostMemory> made(
      builder->buildSerializedNetwork(*network, *config));
  check(made != nullptr, options.model + ": no engine can be built");
  if (cache != nullptr) {
    const std::unique_ptr<nvinfer1::IHostMemory> learned(config->getTimingCache()->serialize());
    write_file(options.timing_cache, learned->data(), learned->size());
  }
  const auto* const begin = static_cast<const char*>(made->data());
  return {begin, begin + made->size()};
}

void Engine::Free::operator()(void* memory) const { cudaFree(memory); }

Engine::Engine(const std::vector<char>& serialized, const std::string& plugins, std::int64_t batch,
               Logger& logger)
    : runtime_(nvinfer1::createInferRuntime(logger)) {
  check(runtime_ != nullptr, "TensorRT cannot be started");
  load_plugins(runtime_->getPluginRegistry(), plugins);
  engine_.reset(runtime_->deserializeCudaEngine(serialized.data(), serialized.size()));
  check(engine_ != nullptr, "the engine cannot be loaded");
  context_.reset(engine_->createExecutionContext());
  check(context_ != nullptr, "there is no memory for a context");
  for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
    add_tensor(engine_->getIOTensorName(i), batch);
  }
  check(cudaStreamCreate(&stream_));
}

Engine::~Engine() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void Engine::add_tensor(const char* name, std::int64_t batch) {
  const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
  check(engine_->getTensorDataType(name) == nvinfer1::DataType::kFLOAT,
        std::string(name) + ": is not float32");
  const nvinfer1::Dims dims = with_batch(engine_->getTensorShape(name), batch);
  check(!is_input || context_->setInputShape(name, dims),
        std::string(name) + ": the engine is not for this batch");
  std::size_t elements = 1;
  for (std::int32_t i = 0; i < dims.nbDims; ++i) elements *= static_cast<std::size_t>(dims.d[i]);
  void* memory = nullptr;
  check(cudaMalloc(&memory, elements * sizeof(float)));
  (is_input ? in_ : out_).emplace_back(memory);
  (is_input ? inputs_ : outputs_).push_back(elements);
  check(cudaMemset(memory, 0, elements * sizeof(float)));
  check(context_->setTensorAddress(name, memory), std::string(name) + ": has no address");
}

void Engine::set_input(std::size_t index, const float* data) {
  check(cudaMemcpyAsync(in_.at(index).get(), data, inputs_.at(index) * sizeof(float),
                        cudaMemcpyHostToDevice, stream_));
  check(cudaStreamSynchronize(stream_));
}

std::vector<float> Engine::output(std::size_t index) const {
  std::vector<float> values(outputs_.at(index));
  check(cudaMemcpyAsync(values.data(), out_.at(index).get(), values.size() * sizeof(float),
                        cudaMemcpyDeviceToHost, stream_));
  check(cudaStreamSynchronize(stream_));
  return values;
}

void Engine::run() {
  check(context_->enqueueV3(stream_), "the engine cannot be run");
  check(cudaStreamSynchronize(stream_));
}

Engine::Timing Engine::measure(std::size_t runs) {
  check(runs > 0, "at least one run is needed");
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<double> times;
  for (std::size_t i = 0; i < kWarmUp + runs; ++i) {
    check(cudaEventRecord(begin, stream_));
    check(context_->enqueueV3(stream_), "the engine cannot be run");
    check(cudaEventRecord(end, stream_));
    check(cudaStreamSynchronize(stream_));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= kWarmUp) times.push_back(milliseconds);
  }
  cudaEventDestroy(end);
  cudaEventDestroy(begin);
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) {
    return times[static_cast<std::size_t>(share * static_cast<double>(times.size() - 1) + 0.5)];
  };
  return {times.size(), at(0.5), at(0.9), at(0.99), times.back()};
}

}  // namespace mdprune::tensorrt
