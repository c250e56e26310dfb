// Builds a TensorRT engine of a bundle's model on the device, and times it:
//
//   mdprune_build_engine MODEL.onnx ENGINE [--plugins libmdprune_tensorrt.so] [--batch N]
//                        [--timing-cache FILE] [--runs N]
//
// Models with plug-in nodes need --plugins, and MDPRUNE_BUNDLE=BUNDLE in the environment. Prints
// one line of JSON; --runs 0 builds only.

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>

#include "engine.h"

namespace {

using namespace mdprune::tensorrt;

constexpr const char* kUsage =
    "usage: mdprune_build_engine MODEL.onnx ENGINE [--plugins LIBRARY] [--batch N] "
    "[--timing-cache FILE] [--runs N]\n";

struct Arguments {
  BuildOptions build;
  std::string engine;
  std::size_t runs = 200;
};

std::int64_t number(const std::string& text) {
  std::size_t end = 0;
  const long long value = std::stoll(text, &end);
  if (end != text.size() || value < 0) throw std::invalid_argument(text);
  return value;
}

// Throws std::invalid_argument or std::out_of_range.
Arguments parse(int argc, char** argv) {
  if (argc < 3) throw std::invalid_argument("too few arguments");
  Arguments arguments;
  arguments.build.model = argv[1];
  arguments.engine = argv[2];
  for (int i = 3; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw std::invalid_argument(name);
    const std::string value = argv[i + 1];
    if (name == "--plugins") {
      arguments.build.plugins = value;
    } else if (name == "--timing-cache") {
      arguments.build.timing_cache = value;
    } else if (name == "--batch") {
      arguments.build.batch = number(value);
    } else if (name == "--runs") {
      arguments.runs = static_cast<std::size_t>(number(value));
    } else {
      throw std::invalid_argument(name);
    }
  }
  if (arguments.build.batch == 0) throw std::invalid_argument("batch is 0");
  return arguments;
}

void run(const Arguments& arguments) {
  Logger logger;
  const std::vector<char> engine = build(arguments.build, logger);
  write_file(arguments.engine, engine.data(), engine.size());
  std::string timing;
  if (arguments.runs > 0) {
    Engine loaded(engine, arguments.build.plugins, arguments.build.batch, logger);
    const Engine::Timing t = loaded.measure(arguments.runs);
    char text[200];
    std::snprintf(text, sizeof text,
                  ", \"batch\": %lld, \"runs\": %zu, \"p50_ms\": %.4f, \"p90_ms\": %.4f, "
                  "\"p99_ms\": %.4f, \"max_ms\": %.4f",
                  static_cast<long long>(arguments.build.batch), t.runs, t.p50, t.p90, t.p99,
                  t.largest);
    timing = text;
  }
  std::printf("{\"engine_bytes\": %zu%s}\n", engine.size(), timing.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  try {
    arguments = parse(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mdprune_build_engine: %s\n%s", error.what(), kUsage);
    return 2;
  }
  try {
    run(arguments);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mdprune_build_engine: %s\n", error.what());
    return 1;
  }
}
