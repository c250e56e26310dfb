// libFuzzer target: the first byte says whether the rest is an index or a plan, beside good others.
// Without libFuzzer a plain program: `fuzz_plan SECONDS [SEED]` runs random mutations, `fuzz_plan
// FILE...` inputs that were found.

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

#include "bundle_writer.h"
#include "mutate.h"

namespace {

class Target {
 public:
  Target() : bundle_(mdprune::small_bundle()) { bundle_.write(path_); }

  void run(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return;
    const std::string native = path_ + "/native/";
    const mdprune::Bytes rest(data + 1, data + size);
    if (data[0] % 2 == 0) {
      bundle_.plans[0].second = rest;
      mdprune::write_file(native + "0.plan", rest);
      mdprune::write_file(native + "index.bin", bundle_.index());
    } else {
      mdprune::write_file(native + "index.bin", rest);
    }
    mdprune::open_and_run(path_);
  }

 private:
  mdprune::TemporaryDirectory directory_;
  mdprune::BundleWriter bundle_;
  const std::string path_ = directory_.path("bundle");
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target target;
  target.run(data, size);
  return 0;
}

#if !defined(MDPRUNE_LIBFUZZER)
int main(int argc, char** argv) {
  const int seconds = argc > 1 ? std::atoi(argv[1]) : 5;
  if (seconds > 0) {
    mdprune::Mutator mutator(nullptr);
    std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    const std::uint64_t first = seed;
    while (std::chrono::steady_clock::now() < end) mutator.try_one(seed++);
    std::cout << seed - first << " mutations, seeds from " << first << "\n";
    return 0;
  }
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    const mdprune::Bytes bytes(std::istreambuf_iterator<char>(file), {});
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
}
#endif
