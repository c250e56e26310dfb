// Messages to TensorRT's logger.

#pragma once

#include <NvInferRuntime.h>

namespace mdprune::tensorrt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;
// To the logger of the engine that calls; to stderr where there is none.
void log_error(const char* text) noexcept;

}  // namespace mdprune::tensorrt
