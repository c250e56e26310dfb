// Breaks copies of a bundle and uses what can still be opened.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle_writer.h"

namespace mdprune {

// Opens the bundle, selects every domain and runs it on small inputs. Anything but a crash is fine;
// returns whether it could be opened.
bool open_and_run(const std::string& path);

class Mutator {
 public:
  // `bundle`: a bundle's directory to copy, or null for the small one.
  explicit Mutator(const char* bundle);
  // Flips, cuts, swaps, inserts or overwrites bytes of one file, opens and runs, and restores it.
  bool try_one(std::uint64_t seed);

 private:
  TemporaryDirectory directory_;
  std::vector<std::pair<std::string, Bytes>> files_;  // path, content; weights are left alone
};

}  // namespace mdprune
