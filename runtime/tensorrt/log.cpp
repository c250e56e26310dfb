#include "log.h"

#include <atomic>
#include <cstdio>

namespace mdprune::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* found) noexcept { finder = found; }

void log_error(const char* text) noexcept {
  nvinfer1::ILoggerFinder* const known = finder;
  nvinfer1::ILogger* const logger = known == nullptr ? nullptr : known->findLogger();
  if (logger == nullptr) {
    std::fprintf(stderr, "mdprune: %s\n", text);
    return;
  }
  logger->log(nvinfer1::ILogger::Severity::kERROR, text);
}

}  // namespace mdprune::tensorrt
