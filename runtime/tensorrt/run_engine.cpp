// Runs an engine that mdprune_build_engine made, at batch 1: an application in its smallest form.
//
//   mdprune_run_engine ENGINE INPUT.bin [libmdprune_tensorrt.so]
//
// INPUT.bin: the float32 elements of the input, as numpy.ndarray.tofile writes them. Engines with
// plug-in layers need the library, and MDPRUNE_BUNDLE=BUNDLE in the environment. Prints the five
// largest outputs with their index.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <numeric>
#include <stdexcept>

#include "engine.h"

namespace {

using namespace mdprune::tensorrt;

void run(const char* engine, const char* input, const char* plugins) {
  Logger logger;
  Engine loaded(read_file(engine), plugins, 1, logger);
  const std::vector<char> bytes = read_file(input);
  if (loaded.inputs().size() != 1 || bytes.size() != loaded.inputs()[0] * sizeof(float)) {
    throw std::runtime_error("the engine takes other inputs");
  }
  std::vector<float> x(loaded.inputs()[0]);
  std::memcpy(x.data(), bytes.data(), bytes.size());
  loaded.set_input(0, x.data());
  loaded.run();
  const std::vector<float> scores = loaded.output(0);
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto shown = static_cast<std::ptrdiff_t>(std::min<std::size_t>(5, order.size()));
  std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                    [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  for (std::ptrdiff_t i = 0; i < shown; ++i) {
    const std::size_t at = order[static_cast<std::size_t>(i)];
    std::printf("%zu %g\n", at, static_cast<double>(scores[at]));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: mdprune_run_engine ENGINE INPUT.bin [LIBRARY]\n");
    return 2;
  }
  try {
    run(argv[1], argv[2], argc == 4 ? argv[3] : "");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mdprune_run_engine: %s\n", error.what());
    return 1;
  }
}
