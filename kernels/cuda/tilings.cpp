#include "tilings.h"

#include <algorithm>
#include <utility>

namespace mdprune::cuda {
namespace {

constexpr TileShape kHalfTiles[] = {{128, 128, 1, true},
                                    {128, 64, 3, true},
                                    {64, 64, 4, false},
                                    {64, 32, 5, false},
                                    {32, 32, 5, false}};
constexpr TileShape kFloatTiles[] = {{64, 64, 3, false}, {32, 32, 5, false}};
constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16};
constexpr std::size_t kMostCounters = kCounterBytes / sizeof(unsigned);

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

std::size_t volume(const std::size_t* sizes) { return sizes[0] * sizes[1] * sizes[2]; }

std::pair<const TileShape*, int> tiles_of(Type type) {
  if (type == kHalf) return {kHalfTiles, int(std::size(kHalfTiles))};
  return {kFloatTiles, int(std::size(kFloatTiles))};
}

// Time of a tiling in cycles of one multiprocessor, roughly: blocks share its arithmetic and its
// bandwidth, and each of them waits for a fixed time that only other blocks can fill.
double cost(const Convolution& c, const TileShape& tile, int splits, int multiprocessors) {
  const Tiles tiles = count_tiles(c, tile);
  const std::size_t blocks =
      tiles.along_pixels * tiles.along_filters * c.groups * static_cast<std::size_t>(splits);
  const bool half = c.type == kHalf;
  // Multiply-adds per cycle, 16-byte copies and their part in a step, its latency with the barrier.
  const double rate = half ? 1024.0 : 100.0;
  const double copies = 1.0 / ((c.x_runs ? 0.5 : 0.1) + (c.w_runs ? 0.5 : 0.1));
  const double latency = 150.0 * copies;
  const double start = 1500.0;  // launch, first loads, epilogue
  const double area = double(tile.pixels) * tile.filters;
  const double edges = (tile.pixels + tile.filters) * 4.0;
  const double work = area * (half ? 32 : 16) / rate + edges * copies / 4.0;  // of a step
  const double steps = double(divide_up(tiles.steps, std::size_t(splits)));
  const double per_multiprocessor = double(divide_up(blocks, std::size_t(multiprocessors)));
  const double waves = double(divide_up(blocks, std::size_t(multiprocessors * tile.resident)));
  const double finish = area / 64.0 * (splits > 1 ? 2.0 + splits : 1.0);
  return std::max(per_multiprocessor * (steps * work + finish),
                  waves * (start + steps * std::max(work, latency) + finish));
}

// A part of fewer than four steps is all latency, and a device that has its blocks four times over
// needs no more of them, nor the memory for their sums.
bool worth_splitting(const Convolution& c, const TileShape& tile, int splits, int multiprocessors) {
  const Tiles tiles = count_tiles(c, tile);
  const std::size_t blocks =
      tiles.along_pixels * tiles.along_filters * c.groups * static_cast<std::size_t>(splits);
  return tiles.steps >= std::size_t(4 * splits) &&
         blocks <= std::size_t(4 * tile.resident) * static_cast<std::size_t>(multiprocessors);
}

struct Candidate {
  double cost;
  Tiling tiling;
};

}  // namespace

const TileShape* find_tile(const Convolution& c, Tiling tiling) {
  const auto [tiles, count] = tiles_of(c.type);
  if (tiling.tile < 0 || tiling.tile >= count || tiling.splits < 1) return nullptr;
  const TileShape& tile = tiles[tiling.tile];
  if (tile.needs_runs && !(c.x_runs && c.w_runs)) return nullptr;
  const Tiles counted = count_tiles(c, tile);
  const std::size_t all = counted.along_pixels * counted.along_filters;
  if (tiling.splits > 1 && (all * c.groups > kMostCounters || tiling.splits > 65535))
    return nullptr;
  return all <= 0x7fffffff ? &tile : nullptr;
}

Tiles count_tiles(const Convolution& c, const TileShape& tile) {
  const std::size_t depth = 64 / size_of(c.type);
  return {divide_up(c.batch * volume(c.window.output), std::size_t(tile.pixels)),
          divide_up(c.filters / c.groups, std::size_t(tile.filters)),
          divide_up(volume(c.window.kernel) * c.reduction, depth)};
}

std::size_t workspace_bytes(const Convolution& c, Tiling tiling) {
  const TileShape* const tile = find_tile(c, tiling);
  if (tile == nullptr || tiling.splits == 1) return kCounterBytes;
  const Tiles tiles = count_tiles(c, *tile);
  const std::size_t sums = std::size_t(tile->pixels) * std::size_t(tile->filters);
  return kCounterBytes + tiles.along_pixels * tiles.along_filters * c.groups *
                             std::size_t(tiling.splits) * sums * sizeof(float);
}

std::vector<Tiling> candidates(const Convolution& c, int multiprocessors) {
  multiprocessors = std::max(1, multiprocessors);
  std::vector<Candidate> found;
  const int count = tiles_of(c.type).second;
  for (int tile = 0; tile < count; ++tile) {
    for (const int splits : kSplits) {
      const Tiling tiling{tile, splits};
      const TileShape* const shape = find_tile(c, tiling);
      if (shape == nullptr) continue;
      if (splits > 1 && !worth_splitting(c, *shape, splits, multiprocessors)) continue;
      found.push_back({cost(c, *shape, splits, multiprocessors), tiling});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Candidate& a, const Candidate& b) { return a.cost < b.cost; });
  // The model is wrong by less than that.
  std::vector<Tiling> tilings;
  for (const Candidate& candidate : found) {
    if (candidate.cost <= 3 * found.front().cost) tilings.push_back(candidate.tiling);
  }
  return tilings;
}

Tiling choose(const Convolution& c, int multiprocessors) {
  return candidates(c, multiprocessors).front();
}

}  // namespace mdprune::cuda
