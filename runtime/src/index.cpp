#include "index.h"

#include <set>

#include "reader.h"

namespace mdprune {

std::vector<IndexEntry> read_index(const MappedFile& file) {
  constexpr std::uint32_t kMostDomains = 65536;
  Reader reader(file.data(), file.size());
  require(std::memcmp(reader.bytes(8), "MDPINDEX", 8) == 0, "this is no index of a bundle");
  const std::uint32_t version = reader.u32();
  if (version != 1) {
    throw Failure(MDP_VERSION, "version " + std::to_string(version) + "; this library reads 1");
  }
  const std::uint32_t domains = reader.u32();
  require(domains >= 1 && domains <= kMostDomains, "the number of domains is wrong");
  std::vector<IndexEntry> entries;
  std::set<std::string> names;
  for (std::uint32_t i = 0; i < domains; ++i) {
    IndexEntry entry;
    entry.name = checked_text(reader.text());
    entry.plan = checked_file_name(reader.text());
    entry.plan_size = reader.u64();
    require(!entry.name.empty(), "a domain has no name");
    require(names.insert(entry.name).second, "two domains have one name");
    entries.push_back(std::move(entry));
  }
  require(reader.left() == 0, "bytes follow the last domain");
  return entries;
}

}  // namespace mdprune
