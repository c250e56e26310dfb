// index.bin: the domains of a bundle and their plan files.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "files.h"

namespace mdprune {

struct IndexEntry {
  std::string name;
  std::string plan;
  std::uint64_t plan_size;
};

std::vector<IndexEntry> read_index(const MappedFile& file);

}  // namespace mdprune
