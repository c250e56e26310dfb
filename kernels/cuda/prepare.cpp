#include "prepare.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace mdprune::cuda {
namespace {

constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();

// One channel of the reduction: where it is in x, and which stored row its weights are.
struct Entry {
  std::int32_t channel;
  Row row;
};
constexpr Entry kPadding{-1, {-1, 0}};

std::int32_t position(const cpu::Convolution& c, std::size_t group, std::size_t r) {
  const std::size_t k = group * c.reduction + r;
  return c.index != nullptr ? c.index[k] : static_cast<std::int32_t>(k);
}

bool is_set(const std::uint32_t* bits, std::size_t i) {
  return bits == nullptr || (bits[i / 32] >> (i % 32) & 1U) != 0;
}

// The reduction of the first group as it is stored.
std::vector<Entry> stored_entries(const cpu::Convolution& c) {
  std::vector<Entry> entries;
  if (c.packed != nullptr) {
    for (std::size_t r = 0; r < c.reduction; ++r) {
      entries.push_back({position(c, 0, r), {0, static_cast<std::int32_t>(r)}});
    }
    return entries;
  }
  std::size_t channel = 0;
  for (std::size_t s = 0; s < c.slab_count; ++s) {
    // Slabs that complete each other read the same channels: their rows add up.
    if (c.slabs[s].joins) channel -= c.slabs[s].used_rows;
    for (std::size_t row = 0; row < c.slabs[s].rows; ++row) {
      if (!is_set(c.slabs[s].row_bits, row)) continue;
      entries.push_back({position(c, 0, channel++),
                         {static_cast<std::int32_t>(s), static_cast<std::int32_t>(row)}});
    }
  }
  return entries;
}

// Whole chunks of x, padded where an entry is not read. Entries are sorted by their channel.
std::vector<Entry> pad_to_chunks(const std::vector<Entry>& entries, std::int32_t chunk) {
  std::vector<Entry> padded;
  std::int32_t begin = -1;  // of the chunk that is being filled
  for (const Entry& entry : entries) {
    const std::int32_t first = entry.channel / chunk * chunk;
    const auto taken = [&] { return padded.end()[entry.channel - first - chunk].row.slab >= 0; };
    if (first != begin || taken()) {  // a channel may be read twice
      begin = first;
      for (std::int32_t i = 0; i < chunk; ++i) padded.push_back({begin + i, kPadding.row});
    }
    padded.end()[entry.channel - first - chunk] = entry;
  }
  return padded;
}

// Whether chunks of x without reordering are runs in every group.
bool are_runs(const cpu::Convolution& c, std::size_t chunk) {
  for (std::size_t g = 0; g < c.groups; ++g) {
    for (std::size_t r = 0; r < c.reduction; ++r) {
      const std::int32_t first = position(c, g, r - r % chunk);
      if (first % static_cast<std::int32_t>(chunk) != 0) return false;
      if (position(c, g, r) != first + static_cast<std::int32_t>(r % chunk)) return false;
    }
  }
  return true;
}

// The offset of every filter of one slab and group, -1 behind the last one and where the slab has
// not the filter, and for each chunk how far apart its rows are.
struct Columns {
  std::vector<std::int32_t> offsets, strides;
};

Columns slab_columns(const cpu::Slab& slab, std::size_t padded, std::size_t chunk) {
  Columns columns;
  for (std::size_t j = 0; j < slab.filters; ++j) {
    if (!is_set(slab.bits, j)) continue;
    while (!is_set(slab.outputs, columns.offsets.size())) columns.offsets.push_back(-1);
    columns.offsets.push_back(static_cast<std::int32_t>(j));
  }
  columns.offsets.resize(padded, -1);
  columns.strides.assign(padded / chunk, static_cast<std::int32_t>(slab.filters));
  return columns;
}

// Panels of at most four blocks of 16 filters, the first ones a block wider where they differ.
Columns packed_columns(const cpu::Convolution& c, std::size_t group, std::size_t padded,
                       std::size_t chunk) {
  Columns columns;
  const std::size_t taps = c.window.kernel[0] * c.window.kernel[1] * c.window.kernel[2];
  const std::size_t rows = taps * c.reduction;
  const std::size_t filters = c.filters / c.groups;
  const std::size_t blocks = (filters + 15) / 16;
  const std::size_t panels = (blocks + 3) / 4;
  std::size_t first = group * blocks;
  for (std::size_t p = 0; p < panels; ++p) {
    const std::size_t width = blocks / panels + (p < blocks % panels ? 1 : 0);
    for (std::size_t j = 0; j < width * 16; ++j) {
      const std::size_t f = columns.offsets.size();
      if (f >= padded) break;
      if (f % chunk == 0) columns.strides.push_back(static_cast<std::int32_t>(width * 16));
      const std::size_t offset = first * 16 * rows + j;
      columns.offsets.push_back(f < filters ? static_cast<std::int32_t>(offset) : -1);
    }
    first += width;
  }
  columns.strides.resize(padded / chunk, 0);
  return columns;
}

bool are_runs(const Columns& columns, std::size_t chunk) {
  for (std::size_t f = 0; f < columns.offsets.size(); ++f) {
    const auto at = static_cast<std::int32_t>(f % chunk);
    const std::int32_t first = columns.offsets[f - f % chunk];
    const auto unit = static_cast<std::int32_t>(chunk);
    if (columns.offsets[f] < 0) continue;
    if (columns.offsets[f] != first + at || first % unit != 0) return false;
    if (columns.strides[f / chunk] % unit != 0) return false;
  }
  return true;
}

template <typename T>
std::size_t append(std::vector<std::uint8_t>& bytes, const std::vector<T>& values) {
  const std::size_t begin = (bytes.size() + 15) / 16 * 16;
  bytes.resize(begin + values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data() + begin, values.data(), values.size() * sizeof(T));
  return begin;
}

// Keeps the first of every chunk.
std::vector<std::int32_t> beginnings(const std::vector<std::int32_t>& values, std::size_t chunk) {
  std::vector<std::int32_t> firsts;
  for (std::size_t i = 0; i < values.size(); i += chunk) firsts.push_back(values[i]);
  return firsts;
}

bool too_large(const cpu::Convolution& c) {
  const std::size_t taps = c.window.kernel[0] * c.window.kernel[1] * c.window.kernel[2];
  if (c.packed != nullptr) {
    const std::size_t blocks = (c.filters / c.groups + 15) / 16;
    return c.groups * blocks * 16 * taps * c.reduction > kMost;
  }
  return std::any_of(c.slabs, c.slabs + c.slab_count, [=](const cpu::Slab& slab) {
    return taps * slab.rows * slab.filters > kMost;
  });
}

}  // namespace

ConvolutionTables prepare(const cpu::Convolution& c, Type type, const void* const* weights) {
  ConvolutionTables tables{};
  if (too_large(c)) return tables;
  const std::size_t chunk = 16 / size_of(type);

  std::vector<Entry> entries = stored_entries(c);
  std::vector<std::int32_t> channels;
  const bool aligned = c.in_channels % chunk == 0;
  if (c.groups == 1) {
    std::stable_sort(entries.begin(), entries.end(),
                     [](const Entry& a, const Entry& b) { return a.channel < b.channel; });
    // A third more products cost less than what is read element by element.
    const auto padded = pad_to_chunks(entries, static_cast<std::int32_t>(chunk));
    tables.x_runs = aligned && padded.size() * 3 <= entries.size() * 4 + 3 * chunk;
    if (tables.x_runs) entries = padded;
    for (const Entry& entry : entries) channels.push_back(entry.channel);
  } else {
    tables.x_runs = aligned && are_runs(c, chunk);
    if (tables.x_runs) entries.resize((entries.size() + chunk - 1) / chunk * chunk, kPadding);
    for (std::size_t g = 0; g < c.groups; ++g) {
      for (std::size_t r = 0; r < entries.size(); ++r) {
        channels.push_back(r < c.reduction ? position(c, g, r) : -1);
      }
    }
  }
  if (tables.x_runs) channels = beginnings(channels, chunk);
  std::vector<Row> rows;
  for (const Entry& entry : entries) rows.push_back(entry.row);
  tables.reduction = entries.size();

  const std::size_t padded = (c.filters / c.groups + 7) / 8 * 8;
  std::vector<std::int32_t> columns, strides;
  std::vector<Slab> slabs;
  tables.chunks = padded / chunk;
  tables.w_runs = true;
  for (std::size_t s = 0; s < (c.packed != nullptr ? 1 : c.slab_count); ++s) {
    slabs.push_back({weights[s], c.packed != nullptr ? c.reduction : c.slabs[s].rows});
    if (c.packed == nullptr && c.slabs[s].outputs != nullptr) tables.w_runs = false;
    if (reinterpret_cast<std::uintptr_t>(weights[s]) % 16 != 0) tables.w_runs = false;
    for (std::size_t g = 0; g < c.groups; ++g) {
      const Columns own = c.packed != nullptr ? packed_columns(c, g, padded, chunk)
                                              : slab_columns(c.slabs[s], padded, chunk);
      tables.w_runs = tables.w_runs && are_runs(own, chunk);
      columns.insert(columns.end(), own.offsets.begin(), own.offsets.end());
      strides.insert(strides.end(), own.strides.begin(), own.strides.end());
    }
  }
  if (tables.w_runs) columns = beginnings(columns, chunk);

  tables.channels = append(tables.bytes, channels);
  tables.rows = append(tables.bytes, rows);
  tables.columns = append(tables.bytes, columns);
  tables.strides = append(tables.bytes, strides);
  tables.slabs = append(tables.bytes, slabs);
  return tables;
}

Convolution bind(const cpu::Convolution& c, Type type, const ConvolutionTables& tables,
                 const void* device) {
  const auto* const base = static_cast<const std::uint8_t*>(device);
  Convolution bound{};
  bound.type = type;
  bound.batch = c.batch;
  bound.window = c.window;
  bound.transposed = c.transposed;
  bound.groups = c.groups;
  bound.in_channels = c.in_channels;
  bound.filters = c.filters;
  bound.stored_filters = c.stored_filters;
  bound.reduction = tables.reduction;
  bound.chunks = tables.chunks;
  bound.x_runs = tables.x_runs;
  bound.w_runs = tables.w_runs;
  bound.channels = reinterpret_cast<const std::int32_t*>(base + tables.channels);
  bound.rows = reinterpret_cast<const Row*>(base + tables.rows);
  bound.columns = reinterpret_cast<const std::int32_t*>(base + tables.columns);
  bound.strides = reinterpret_cast<const std::int32_t*>(base + tables.strides);
  bound.slabs = reinterpret_cast<const Slab*>(base + tables.slabs);
  bound.residual_channels = c.residual_channels;
  bound.activation = c.activation;
  bound.activation2 = c.activation2;
  return bound;
}

}  // namespace mdprune::cuda
