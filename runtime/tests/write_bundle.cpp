// write_bundle DIRECTORY [SEEDS]: writes the small bundle of the tests and, to the folder SEEDS,
// inputs for fuzz_plan to start from.

#include <iostream>

#include "bundle_writer.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: write_bundle DIRECTORY [SEEDS]\n";
    return 1;
  }
  const mdprune::BundleWriter bundle = mdprune::small_bundle();
  bundle.write(argv[1]);
  if (argc < 3) return 0;
  mdprune::Bytes plan = bundle.plans[0].second;
  plan.insert(plan.begin(), 0);
  mdprune::write_file(std::string(argv[2]) + "/plan", plan);
  mdprune::Bytes index = bundle.index();
  index.insert(index.begin(), 1);
  mdprune::write_file(std::string(argv[2]) + "/index", index);
  return 0;
}
