// Building an engine of a model, and running it: what mdprune_build_engine does.

#pragma once

#include <NvInfer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mdprune::tensorrt {

// Prints warnings and errors to stderr.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override;
};

// All of them throw std::runtime_error.

std::vector<char> read_file(const std::string& path);
// Under a temporary name, then renamed.
void write_file(const std::string& path, const void* data, std::size_t size);

struct BuildOptions {
  std::string model;         // .onnx
  std::string plugins;       // libmdprune_tensorrt.so, or empty
  std::string timing_cache;  // read if it is there, and written; or empty
  std::int64_t batch = 1;    // the largest, where the first axis of the inputs is free
};
std::vector<char> build(const BuildOptions& options, Logger& logger);

// One engine with a context and device memory for its inputs and outputs, at one batch.
class Engine {
 public:
  Engine(const std::vector<char>& serialized, const std::string& plugins, std::int64_t batch,
         Logger& logger);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  // Elements of the float32 inputs and outputs, in the engine's order.
  const std::vector<std::size_t>& inputs() const { return inputs_; }
  const std::vector<std::size_t>& outputs() const { return outputs_; }
  void set_input(std::size_t index, const float* data);
  std::vector<float> output(std::size_t index) const;
  void run();  // returns when the outputs are there

  struct Timing {
    std::size_t runs;
    double p50, p90, p99, largest;  // milliseconds of one inference on the device
  };
  Timing measure(std::size_t runs);

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  void add_tensor(const char* name, std::int64_t batch);

  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::vector<std::unique_ptr<void, Free>> in_, out_;
  std::vector<std::size_t> inputs_, outputs_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace mdprune::tensorrt
