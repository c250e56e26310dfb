// Convolutions and matrix products over a shared weight buffer.
//
//   acc[p, f] = sum over taps t and channels r of x[pixel(p, t), index[r]] * W[f, r, t]
//
// Lanes run over filters. Weights are read as panels (rows of up to 64 filters): those of a slab
// are packed into L2 as every GEMM packs them, except that filters which the domain does not use
// are left out on the way; a private copy is stored as panels already. Input channels are selected
// by the address alone: a row of a panel meets the activation at `index[r]`, so a subset costs what
// all channels cost. A tile of pixels holds one pointer per tap and pixel; outside the image the
// pointer leads to zeros, and a tap that is outside for the whole tile is skipped.

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <utility>

#include "activation.inl"
#include "kernels.h"
#include "vec.h"

// Sums of a tile live in registers where the loops over them are unrolled. With a sanitizer that
// would be minutes of compilation.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MDPRUNE_UNROLL
#else
#define MDPRUNE_UNROLL _Pragma("GCC unroll 8")
#endif

namespace mdprune::cpu::MDPRUNE_ISA {
namespace conv {

constexpr std::size_t kBlock = 16;       // filters that a panel's width is a multiple of
constexpr std::size_t kPanelBlocks = 4;  // widest panel
constexpr std::size_t kVectors = kBlock / Vec::kLanes;  // vectors per block

// Blocks that a tile computes at once, and its most pixels for so many: accumulators, one row of
// weights and one activation fill the registers.
constexpr std::size_t kTileBlocks = Vec::kLanes == 16 ? kPanelBlocks : 1;
constexpr std::size_t kMaxPixels = 8;
constexpr std::size_t kFewPixels = 4;
constexpr std::size_t most_pixels(std::size_t blocks) {
  const std::size_t vectors = blocks * kVectors;
  const std::size_t fit = (Vec::kRegisters - 2 - vectors) / vectors;
  return fit < kMaxPixels ? fit : kMaxPixels;
}

constexpr std::ptrdiff_t kLine = 64;  // bytes of a cache line

// Layout of a worker's scratch memory, in floats.
constexpr std::size_t kZeroRow = 32768;  // the widest padded input whose tiles have several pixels
constexpr std::size_t kMaxTaps = 1024;   // per pass
constexpr std::size_t kPanel = 96 * 1024;
constexpr std::size_t kPartial = 96 * 1024;
constexpr std::size_t kMaxRows = kPanel / kBlock;  // per pass
static_assert((kZeroRow + kPanel + kBlock + kPartial + kMaxTaps * kMaxPixels * 2 + 2 * kMaxRows) *
                  sizeof(float) <=
              kScratchBytes);

struct Scratch {
  float* panel;
  float* partial;
  float* zeros;
  const float** pointers;
  std::int32_t* identity;
  std::int32_t* merged;

  explicit Scratch(std::uint8_t* base)
      : panel(reinterpret_cast<float*>(base)),
        partial(panel + kPanel + kBlock),
        zeros(partial + kPartial),
        pointers(reinterpret_cast<const float**>(zeros + kZeroRow)),
        identity(reinterpret_cast<std::int32_t*>(pointers + kMaxTaps * kMaxPixels)),
        merged(identity + kMaxRows) {}
};

// Sixteen values among many. One permutation selects them where they lie within 32.
struct Pick {
  alignas(64) std::int32_t from[kBlock];  // positions behind `first`
  std::size_t first;
  std::size_t count;
  bool near;  // and 32 values can be read

  Pick() = default;
  Pick(const std::int32_t* positions, std::size_t number, std::size_t limit) : count(number) {
    const std::int32_t* const end = positions + count;
    const auto lowest = static_cast<std::size_t>(*std::min_element(positions, end));
    const auto highest = static_cast<std::size_t>(*std::max_element(positions, end));
    first = std::min(lowest, std::max(limit, 2 * kBlock) - 2 * kBlock);
    near = Vec::kLanes == kBlock && highest < first + 2 * kBlock && limit >= 2 * kBlock;
    for (std::size_t i = 0; i < kBlock; ++i) {
      from[i] = i < count ? positions[i] - static_cast<std::int32_t>(first) : 0;
    }
  }

  // All sixteen, where they are near and fill a vector.
  Vec near_load(const float* values) const {
#if defined(__AVX512F__)
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(values + first), _mm512_load_si512(from),
                                   _mm512_loadu_ps(values + first + kBlock))};
#else
    return load(values, 0);
#endif
  }

  // Lanes [begin, begin + Vec::kLanes) of the sixteen, out of `values`; zeros behind the last one.
  Vec load(const float* values, std::size_t begin) const {
#if defined(__AVX512F__)
    if (near) return near_load(values);
#endif
    values += first;
    float lanes[Vec::kLanes] = {};
    const std::size_t end = std::min(count, begin + Vec::kLanes);
    for (std::size_t i = begin; i < end; ++i) lanes[i - begin] = values[from[i]];
    return Vec::load(lanes);
  }
};

// What happens to a finished sum. Activations that are a clamp stay in registers.
struct Epilogue {
  const float* scale;
  const float* shift;
  const float* residual;
  float* y;
  float low;
  float high;
  bool bounded;  // whether `low` and `high` do anything
  bool clamp;    // whether they are all of the activation
  const float* scale2;
  const float* shift2;
  float* y2;
  float low2;
  float high2;
  bool clamp2;
  const Convolution* call;
};

struct Clamp {
  bool all;
  float low;
  float high;
};

inline Clamp clamp_of(const Activation& activation) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (activation.code) {
    case 0: return {true, -kInfinity, kInfinity};
    case 1: return {true, 0.0F, kInfinity};
    case 2: return {true, activation.a, activation.b};
    default: return {false, -kInfinity, kInfinity};
  }
}

// What a tile does with its sums when it is done.
enum class End { kKeep, kPlain, kSame, kPicked, kPlainSecond, kSameSecond, kPickedSecond };

// One pass over a tile: taps x rows of one panel, for up to eight pixels. Where a whole row of the
// kernel lies inside the image, its taps count as one, with as many more rows.
struct Pass {
  const float* const* pointers;  // taps x pixels; a tap whose first pointer is null is skipped
  std::size_t taps;
  const std::int32_t* index;
  std::size_t rows;
  const float* weights;  // taps x rows x `step`
  std::size_t step;      // floats from one row of the panel to the next
  float* sums;           // pixels x blocks x 16
  bool first;            // the sums begin at zero
  End end;
  const char* ahead;       // what is read next: one line is brought to L2 per row, up to
  const char* ahead_last;  // this one
};

template <std::size_t P, std::size_t V>
inline void multiply(const Pass& pass, Vec (&acc)[P][V]) {
  const float* w = pass.weights;
  const float* const* pointers = pass.pointers;
  const std::size_t step = pass.step;
  const std::int32_t* const end = pass.index + pass.rows;
  const char* ahead = pass.ahead;
  const char* const ahead_last = pass.ahead_last;
  for (std::size_t tap = 0; tap < pass.taps; ++tap, pointers += P) {
    if (pointers[0] == nullptr) {
      w += pass.rows * step;
      continue;
    }
    const float* x[P];
    MDPRUNE_UNROLL
    for (std::size_t p = 0; p < P; ++p) x[p] = pointers[p];
    for (const std::int32_t* i = pass.index; i != end; ++i, w += step) {
      const std::ptrdiff_t channel = *i;
      __builtin_prefetch(ahead, 0, 2);
      ahead = ahead < ahead_last ? ahead + kLine : ahead_last;
      Vec row[V];
      MDPRUNE_UNROLL
      for (std::size_t v = 0; v < V; ++v) row[v] = Vec::load(w + v * Vec::kLanes);
      MDPRUNE_UNROLL
      for (std::size_t p = 0; p < P; ++p) {
        const Vec value = Vec::all(x[p][channel]);
        MDPRUNE_UNROLL
        for (std::size_t v = 0; v < V; ++v) acc[p][v] = fma(value, row[v], acc[p][v]);
      }
    }
  }
}

// Where the sums of a tile go.
struct Tile {
  const float* sums;  // pixels x `width`
  std::size_t width;
  const std::size_t* pixels;
  std::size_t count;
  std::size_t filter;  // the first
  std::size_t valid;   // filters
  const Pick* picks;   // of the residual, one per block
};

enum class Residual { kNone, kSame, kPicked };

// The epilogue in registers, for whole vectors and activations that are a clamp.
template <Residual kind, bool second, std::size_t P, std::size_t V>
inline void finish_in_registers(const Epilogue& e, const Tile& tile, const Vec (&acc)[P][V]) {
  const Vec low = Vec::all(e.low), high = Vec::all(e.high);
  const Vec low2 = Vec::all(e.low2), high2 = Vec::all(e.high2);
  const std::size_t filters = e.call->filters, channels = e.call->residual_channels;
  float* y[P];
  float* y2[P];
  const float* residual[P];
  MDPRUNE_UNROLL
  for (std::size_t p = 0; p < P; ++p) {
    const std::size_t at = tile.pixels[p] * filters + tile.filter;
    y[p] = e.y + at;
    if (second) y2[p] = e.y2 + at;
    if constexpr (kind == Residual::kSame) residual[p] = e.residual + at;
    if constexpr (kind == Residual::kPicked) residual[p] = e.residual + tile.pixels[p] * channels;
  }
  const float* const scale = e.scale != nullptr ? e.scale + tile.filter : nullptr;
  const float* const shift = e.shift != nullptr ? e.shift + tile.filter : nullptr;
  const float* const scale2 = e.scale2 != nullptr ? e.scale2 + tile.filter : nullptr;
  const float* const shift2 = e.shift2 != nullptr ? e.shift2 + tile.filter : nullptr;
  MDPRUNE_UNROLL
  for (std::size_t v = 0; v < V; ++v) {
    const std::size_t at = v * Vec::kLanes;
    const Vec factor = scale != nullptr ? Vec::load(scale + at) : Vec::all(1.0F);
    const Vec offset = shift != nullptr ? Vec::load(shift + at) : Vec::zero();
    Vec factor2, offset2;
    if (second) {
      factor2 = scale2 != nullptr ? Vec::load(scale2 + at) : Vec::all(1.0F);
      offset2 = shift2 != nullptr ? Vec::load(shift2 + at) : Vec::zero();
    }
    MDPRUNE_UNROLL
    for (std::size_t p = 0; p < P; ++p) {
      Vec value = fma(acc[p][v], factor, offset);
      if constexpr (kind == Residual::kSame) value = value + Vec::load(residual[p] + at);
      if constexpr (kind == Residual::kPicked)
        value = value + tile.picks[at / kBlock].near_load(residual[p]);
      value = min(high, max(low, value));
      value.store(y[p] + at);
      if (second) min(high2, max(low2, fma(value, factor2, offset2))).store(y2[p] + at);
    }
  }
}

template <std::size_t P, std::size_t B>
void run_tile(const Pass& pass, const Epilogue& e, const Tile& tile) {
  constexpr std::size_t V = B * kVectors;
  Vec acc[P][V];
  MDPRUNE_UNROLL
  for (std::size_t p = 0; p < P; ++p) {
    MDPRUNE_UNROLL
    for (std::size_t v = 0; v < V; ++v) {
      acc[p][v] = pass.first ? Vec::zero() : Vec::load(pass.sums + (p * V + v) * Vec::kLanes);
    }
  }
  multiply<P, V>(pass, acc);
  switch (pass.end) {
    case End::kPlain: return finish_in_registers<Residual::kNone, false>(e, tile, acc);
    case End::kSame: return finish_in_registers<Residual::kSame, false>(e, tile, acc);
    case End::kPicked: return finish_in_registers<Residual::kPicked, false>(e, tile, acc);
    case End::kPlainSecond: return finish_in_registers<Residual::kNone, true>(e, tile, acc);
    case End::kSameSecond: return finish_in_registers<Residual::kSame, true>(e, tile, acc);
    case End::kPickedSecond: return finish_in_registers<Residual::kPicked, true>(e, tile, acc);
    case End::kKeep: break;
  }
  float* const sums = pass.sums;
  MDPRUNE_UNROLL
  for (std::size_t p = 0; p < P; ++p) {
    MDPRUNE_UNROLL
    for (std::size_t v = 0; v < V; ++v) acc[p][v].store(sums + (p * V + v) * Vec::kLanes);
  }
}

// The epilogue for all else, from sums that the tile kept.
template <Residual kind, bool second, bool whole>
inline void finish_vector(const Epilogue& e, const Tile& tile, std::size_t begin) {
  const std::size_t count = std::min(tile.valid - begin, Vec::kLanes);
  const auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load(p, count); };
  const auto store = [&](Vec value, float* p) {
    if (whole) {
      value.store(p);
    } else {
      value.store(p, count);
    }
  };
  const std::size_t filter = tile.filter + begin, filters = e.call->filters;
  const Vec scale = e.scale != nullptr ? load(e.scale + filter) : Vec::all(1.0F);
  const Vec shift = e.shift != nullptr ? load(e.shift + filter) : Vec::zero();
  const Vec scale2 = second && e.scale2 != nullptr ? load(e.scale2 + filter) : Vec::all(1.0F);
  const Vec shift2 = second && e.shift2 != nullptr ? load(e.shift2 + filter) : Vec::zero();
  const Vec low = Vec::all(e.low), high = Vec::all(e.high);
  const Vec low2 = Vec::all(e.low2), high2 = Vec::all(e.high2);
  const Pick* const pick = kind == Residual::kPicked ? tile.picks + begin / kBlock : nullptr;
  const float* sums = tile.sums + begin;
  float* const y = e.y + filter;
  float* const y2 = second ? e.y2 + filter : nullptr;
  for (std::size_t p = 0; p < tile.count; ++p, sums += tile.width) {
    const std::size_t pixel = tile.pixels[p];
    Vec value = fma(Vec::load(sums), scale, shift);
    if constexpr (kind == Residual::kSame)
      value = value + load(e.residual + pixel * filters + filter);
    if constexpr (kind == Residual::kPicked) {
      value = value + pick->load(e.residual + pixel * e.call->residual_channels, begin % kBlock);
    }
    if (e.bounded) value = min(high, max(low, value));
    store(value, y + pixel * filters);
    if (second) store(min(high2, max(low2, fma(value, scale2, shift2))), y2 + pixel * filters);
  }
}

template <Residual kind, bool second>
void finish(const Epilogue& e, const Tile& tile) {
  std::size_t begin = 0;
  for (; begin + Vec::kLanes <= tile.valid; begin += Vec::kLanes) {
    finish_vector<kind, second, true>(e, tile, begin);
  }
  if (begin < tile.valid) finish_vector<kind, second, false>(e, tile, begin);
}

// An activation that is no clamp, in place.
inline void activate_row(float* y, std::size_t count, const Activation& activation) {
  with_activation(activation, [&](auto function) {
    std::size_t i = 0;
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) function(Vec::load(y + i)).store(y + i);
    if (i < count) function(Vec::load(y + i, count - i)).store(y + i, count - i);
  });
}

// What a clamp cannot do, behind the stores.
inline void finish_slowly(const Epilogue& e, const Tile& tile) {
  const Convolution& call = *e.call;
  for (std::size_t p = 0; p < tile.count; ++p) {
    const std::size_t at = tile.pixels[p] * call.filters + tile.filter;
    if (!e.clamp) activate_row(e.y + at, tile.valid, call.activation);
    if (e.y2 == nullptr) continue;
    for (std::size_t f = 0; f < tile.valid && !e.clamp; ++f) {
      const float scale = e.scale2 != nullptr ? e.scale2[tile.filter + f] : 1.0F;
      const float shift = e.shift2 != nullptr ? e.shift2[tile.filter + f] : 0.0F;
      const float value = e.y[at + f] * scale + shift;
      e.y2[at + f] = std::min(e.high2, std::max(e.low2, value));
    }
    if (!e.clamp2) activate_row(e.y2 + at, tile.valid, call.activation2);
  }
}

inline void finish_tile(const Epilogue& e, const Tile& tile) {
  const bool second = e.y2 != nullptr && e.clamp;
  if (e.residual == nullptr) {
    (second ? finish<Residual::kNone, true> : finish<Residual::kNone, false>)(e, tile);
  } else if (tile.picks == nullptr) {
    (second ? finish<Residual::kSame, true> : finish<Residual::kSame, false>)(e, tile);
  } else {
    (second ? finish<Residual::kPicked, true> : finish<Residual::kPicked, false>)(e, tile);
  }
  if (!e.clamp || !e.clamp2) finish_slowly(e, tile);
}

using TileFunction = void (*)(const Pass&, const Epilogue&, const Tile&);

template <std::size_t B, std::size_t... P>
constexpr std::array<TileFunction, kMaxPixels + 1> tiles_of(std::index_sequence<P...>) {
  return {nullptr, (P + 1 <= most_pixels(B) ? &run_tile<(P + 1 <= most_pixels(B) ? P + 1 : 1), B>
                                            : nullptr)...};
}

template <std::size_t... B>
constexpr std::array<std::array<TileFunction, kMaxPixels + 1>, kTileBlocks + 1> all_tiles(
    std::index_sequence<B...>) {
  return {std::array<TileFunction, kMaxPixels + 1>{},
          tiles_of<B + 1>(std::make_index_sequence<kMaxPixels>{})...};
}

constexpr auto kTiles = all_tiles(std::make_index_sequence<kTileBlocks>{});

// The filters of one group, cut into panels of equal width as nearly as blocks allow.
struct Panels {
  std::size_t blocks;
  std::size_t count;

  explicit Panels(std::size_t filters)
      : blocks((filters + kBlock - 1) / kBlock),
        count((blocks + kPanelBlocks - 1) / kPanelBlocks) {}
  std::size_t first_block(std::size_t panel) const {
    return panel * (blocks / count) + std::min(panel, blocks % count);
  }
};

// Walks the used rows of a slab, rising.
class Rows {
 public:
  Rows() = default;
  // Begins behind the first `skipped` of them.
  Rows(const Slab& slab, std::size_t skipped) : bits_(slab.row_bits) {
    if (bits_ == nullptr) {
      at_ = skipped;
      return;
    }
    std::size_t used;
    while ((used = static_cast<std::size_t>(__builtin_popcount(bits_[word_]))) <= skipped) {
      skipped -= used;
      ++word_;
    }
    for (left_ = bits_[word_]; skipped > 0; --skipped) left_ &= left_ - 1;
  }

  // The next row. There must be one.
  std::size_t next() {
    if (bits_ == nullptr) return at_++;
    while (left_ == 0) left_ = bits_[++word_];
    const std::size_t row = word_ * 32 + static_cast<std::size_t>(__builtin_ctz(left_));
    left_ &= left_ - 1;
    return row;
  }

  // The next row and how many of `most` that are there follow each other from it on.
  std::pair<std::size_t, std::size_t> next_run(std::size_t most) {
    if (bits_ == nullptr) {
      at_ += most;
      return {at_ - most, most};
    }
    const std::size_t first = next();
    std::size_t count = 1;
    for (Rows ahead = *this; count < most && ahead.next() == first + count; ++count) *this = ahead;
    return {first, count};
  }

 private:
  const std::uint32_t* bits_ = nullptr;
  std::size_t at_ = 0;  // the next row, without bits
  std::size_t word_ = 0;
  std::uint32_t left_ = 0;  // bits of the word that are not behind
};

// Tells whether the next slab completes the rows of one.
inline bool is_joined(const Convolution& call, std::size_t slab) {
  return slab + 1 < call.slab_count && call.slabs[slab + 1].joins;
}

// Where the used filters of one panel lie in the stored rows of a slab.
class Selection {
 public:
  Selection() = default;

  // `first` and `count`: the panel's filters, as the domain numbers them.
  Selection(const Slab& slab, std::size_t first, std::size_t count)
      : count_(count), joins_(slab.joins) {
    Filters position;
    if (slab.outputs == nullptr) {
      find(slab, first, count, position);
    } else {
      std::size_t before = 0;
      for (std::size_t word = 0; word * 32 < first + count; ++word) {
        for (std::uint32_t bits = slab.outputs[word]; bits != 0; bits &= bits - 1) {
          const std::size_t filter = word * 32 + static_cast<std::size_t>(__builtin_ctz(bits));
          if (word * 32 + 32 <= first) {
            before += static_cast<std::size_t>(__builtin_popcount(bits));
            break;
          }
          if (filter < first) ++before;
          if (filter >= first && filter < first + count) lane_[joined_++] = filter - first;
        }
      }
      find(slab, before, joined_, joined_position_);
      // What the slab has not is overwritten by those that join.
      for (std::size_t lane = 0, next = 0; lane < count; ++lane) {
        if (next < joined_ && lane_[next] == lane) ++next;
        position[lane] = next > 0 ? joined_position_[next - 1] : 0;
      }
    }
    place(position, slab.filters);
  }

  // Packs stored rows into rows of `width` floats.
  void pack(const float* const* from, std::size_t rows, float* to, std::size_t width) const {
    if (joins_) {
      for (std::size_t row = 0; row < rows; ++row, to += width) {
        for (std::size_t i = 0; i < joined_; ++i) to[lane_[i]] = from[row][joined_position_[i]];
      }
      return;
    }
    for (std::size_t block = 0; block < width / kBlock; ++block) {
      pack_block(block, from, rows, to + block * kBlock, width);
    }
  }

 private:
  using Filters = std::array<std::size_t, kPanelBlocks * kBlock>;

  // Finds where `count` used filters of a slab are stored, behind the first ones.
  static void find(const Slab& slab, std::size_t first, std::size_t count, Filters& position) {
    if (slab.bits == nullptr) {
      std::iota(position.begin(), position.begin() + count, first);
      return;
    }
    std::size_t rank = 0, found = 0;
    for (std::size_t word = 0; found < count; ++word) {
      std::uint32_t bits = slab.bits[word];
      const std::size_t used = static_cast<std::size_t>(__builtin_popcount(bits));
      if (rank + used <= first) {
        rank += used;
        continue;
      }
      for (; bits != 0 && found < count; bits &= bits - 1) {
        if (rank++ >= first) {
          position[found++] = word * 32 + static_cast<std::size_t>(__builtin_ctz(bits));
        }
      }
    }
  }

#if defined(__AVX512F__)
  // Sixteen filters come from the 32 stored ones behind the first of them, and from further pairs
  // of vectors behind those where they lie wider apart.
  struct Block {
    alignas(
        64) std::int32_t from[kBlock];  // filters behind `first`; their low 5 bits permute a pair
    std::size_t first;
    std::size_t pairs;
    std::uint32_t second;  // lanes that come from the second pair
    bool whole;            // every lane is used, and a row holds all that unmasked loads read
    bool contiguous;
  };

  void place(const Filters& position, std::size_t stored) {
    for (std::size_t begin = 0; begin < count_; begin += kBlock) {
      Block& block = blocks_[begin / kBlock];
      block.first = position[begin];
      if (stored % kBlock == 0)
        block.first -= block.first % kBlock;  // rows are aligned, so loads are
      const std::size_t count = std::min(kBlock, count_ - begin);
      const std::size_t span = position[begin + count - 1] - block.first + 1;
      block.pairs = (span + 2 * kBlock - 1) / (2 * kBlock);
      block.whole = count == kBlock && block.first + block.pairs * 2 * kBlock <= stored;
      block.contiguous = count == kBlock && span == kBlock;
      block.second = 0;
      for (std::size_t lane = 0; lane < kBlock; ++lane) {
        const std::size_t at = lane < count ? position[begin + lane] - block.first : 0;
        block.from[lane] = static_cast<std::int32_t>(at);
        block.contiguous = block.contiguous && at == lane;
        if (at / (2 * kBlock) == 1) block.second |= std::uint32_t{1} << lane;
      }
    }
  }

  void pack_block(std::size_t number, const float* const* from, std::size_t rows, float* to,
                  std::size_t width) const {
    const Block& block = blocks_[number];
    const __m512i index = _mm512_load_si512(block.from);
    if (!block.whole || block.pairs > 2) {
      const std::size_t count = std::min(kBlock, count_ - number * kBlock);
      for (std::size_t row = 0; row < rows; ++row, to += width) {
        const float* const values = from[row] + block.first;
        for (std::size_t lane = 0; lane < count; ++lane) to[lane] = values[block.from[lane]];
        std::fill(to + count, to + kBlock, 0.0F);
      }
    } else if (block.contiguous) {
      for (std::size_t row = 0; row < rows; ++row, to += width) {
        _mm512_storeu_ps(to, _mm512_loadu_ps(from[row] + block.first));
      }
    } else if (block.pairs == 1) {
      MDPRUNE_UNROLL
      for (std::size_t row = 0; row < rows; ++row, to += width) {
        _mm512_storeu_ps(to, pair(from[row] + block.first, index));
      }
    } else {
      const auto second = static_cast<__mmask16>(block.second);
      MDPRUNE_UNROLL
      for (std::size_t row = 0; row < rows; ++row, to += width) {
        const float* const values = from[row] + block.first;
        const __m512 high = pair(values + 2 * kBlock, index);
        _mm512_storeu_ps(to, _mm512_mask_mov_ps(pair(values, index), second, high));
      }
    }
  }

  static __m512 pair(const float* from, __m512i index) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(from), index, _mm512_loadu_ps(from + kBlock));
  }

  std::array<Block, kPanelBlocks> blocks_;
#else
  void place(const Filters& position, std::size_t) {
    std::copy_n(position.begin(), count_, position_.begin());
  }

  void pack_block(std::size_t number, const float* const* from, std::size_t rows, float* to,
                  std::size_t width) const {
    const std::size_t begin = number * kBlock, count = std::min(kBlock, count_ - begin);
    for (std::size_t row = 0; row < rows; ++row, to += width) {
      for (std::size_t i = 0; i < count; ++i) to[i] = from[row][position_[begin + i]];
      std::fill(to + count, to + kBlock, 0.0F);
    }
  }

  Filters position_;
#endif
  std::size_t count_;
  bool joins_ = false;
  // Of the slabs that complete each other: which of the panel's filters, and where they are stored.
  std::size_t joined_ = 0;
  Filters lane_, joined_position_;
};

// Where tiles lie and what they read. Pixels are numbered row-major over (batch, output).
class Tiling {
 public:
  Tiling(const Convolution& call, std::size_t most)
      : call_(call),
        most_(most),
        pointwise_(is_pointwise(call)),
        pixels_(call.batch * call.window.output[0] * call.window.output[1] *
                call.window.output[2]) {
    const Window& w = call.window;
    if (!pointwise_ && call.in_channels > kZeroRow) most_ = 1;
    if (pointwise_) {
      rows_ = 1;
      length_ = pixels_;
      phases_ = 1;
    } else {
      rows_ = pixels_ / w.output[2];
      length_ = w.output[2];
      phases_ = call.transposed ? std::min(w.stride[2], length_) : 1;
    }
    per_row_ = 0;
    for (std::size_t phase = 0; phase < phases_; ++phase) per_row_ += cuts(phase);
    even_ = length_ / per_row_;
    longer_ = length_ % per_row_;
  }

  std::size_t count() const { return rows_ * per_row_; }

  // Pixels of a tile, on average.
  std::size_t mean() const { return pixels_ / count(); }

  // Fills in the pixels of a tile; returns how many.
  std::size_t tile(std::size_t number, std::size_t* pixels) const {
    const std::size_t row = rows_ == 1 ? 0 : number / per_row_;
    std::size_t cut = number - row * per_row_;
    if (phases_ == 1) {
      const std::size_t begin = row * length_ + cut * even_ + std::min(cut, longer_);
      const std::size_t size = even_ + (cut < longer_ ? 1 : 0);
      for (std::size_t i = 0; i < size; ++i) pixels[i] = begin + i;
      return size;
    }
    std::size_t phase = 0;
    while (cut >= cuts(phase)) cut -= cuts(phase++);
    const std::size_t size = phase_length(phase), parts = cuts(phase);
    const std::size_t begin = cut * size / parts, end = (cut + 1) * size / parts;
    for (std::size_t i = begin; i < end; ++i)
      pixels[i - begin] = row * length_ + phase + i * phases_;
    return end - begin;
  }

  // Tells whether every tap of a kernel's row is inside the image for all pixels of a tile, which
  // lie in one row of the output.
  bool inside(const std::size_t* pixels, std::size_t count) const {
    const Window& w = call_.window;
    const std::size_t first = pixels[0] % w.output[2] * w.stride[2];
    const std::size_t last = pixels[count - 1] % w.output[2] * w.stride[2];
    return first >= w.pad[2] && last + (w.kernel[2] - 1) * w.dilation[2] < w.input[2] + w.pad[2];
  }

  // Fills in pointers for taps first, first + step ... below last, `count` of them a tap.
  void pointers(const std::size_t* pixels, std::size_t count, std::size_t first, std::size_t last,
                std::size_t step, const float* x, const float* zeros, const float** out) const {
    if (pointwise_) {
      for (std::size_t p = 0; p < count; ++p) out[p] = x + pixels[p] * call_.in_channels;
      return;
    }
    // All pixels of a tile lie in one row of the output.
    const Window& w = call_.window;
    std::size_t rest = pixels[0] / w.output[2];
    const std::ptrdiff_t row = origin(rest % w.output[1], 1);
    rest /= w.output[1];
    const std::ptrdiff_t plane = origin(rest % w.output[0], 0);
    const std::size_t image = rest / w.output[0] * w.input[0];
    const std::size_t begin = pixels[0] % w.output[2];
    std::array<std::ptrdiff_t, kMaxPixels> column;
    for (std::size_t p = 0; p < count; ++p) column[p] = origin(begin + pixels[p] - pixels[0], 2);
    for (std::size_t tap = first; tap < last; tap += step, out += count) {
      const std::size_t z = input(plane, tap / (w.kernel[2] * w.kernel[1]), 0);
      const std::size_t y = input(row, tap / w.kernel[2] % w.kernel[1], 1);
      out[0] = nullptr;
      if (z == kOutside || y == kOutside) continue;
      const float* const from = x + ((image + z) * w.input[1] + y) * w.input[2] * call_.in_channels;
      bool any = false;
      for (std::size_t p = 0; p < count; ++p) {
        const std::size_t at = input(column[p], tap % w.kernel[2], 2);
        out[p] = at == kOutside ? zeros : from + at * call_.in_channels;
        any = any || at != kOutside;
      }
      if (!any) out[0] = nullptr;
    }
  }

 private:
  static bool is_pointwise(const Convolution& call) {
    const Window& w = call.window;
    bool pointwise = true;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      pointwise = pointwise && w.kernel[axis] == 1 && w.stride[axis] == 1 && w.pad[axis] == 0 &&
                  w.input[axis] == w.output[axis];
    }
    return pointwise;
  }
  static constexpr std::size_t kOutside = std::numeric_limits<std::size_t>::max();

  // Where the window of an output position begins. Transposed: the position that taps count back
  // from.
  std::ptrdiff_t origin(std::size_t position, std::size_t axis) const {
    const auto at = static_cast<std::ptrdiff_t>(position);
    const auto pad = static_cast<std::ptrdiff_t>(call_.window.pad[axis]);
    if (call_.transposed) return at + pad;
    return at * static_cast<std::ptrdiff_t>(call_.window.stride[axis]) - pad;
  }

  // The input position that a tap of a window reads.
  std::size_t input(std::ptrdiff_t origin, std::size_t tap, std::size_t axis) const {
    const Window& w = call_.window;
    const auto offset = static_cast<std::ptrdiff_t>(tap * w.dilation[axis]);
    auto at = static_cast<std::size_t>(call_.transposed ? origin - offset : origin + offset);
    if (call_.transposed) {
      if (origin < offset || at % w.stride[axis] != 0) return kOutside;
      at /= w.stride[axis];
    }
    return at < w.input[axis] ? at : kOutside;  // what is negative became large
  }

  std::size_t phase_length(std::size_t phase) const {
    return (length_ - phase + phases_ - 1) / phases_;
  }
  std::size_t cuts(std::size_t phase) const { return (phase_length(phase) + most_ - 1) / most_; }

  const Convolution& call_;
  std::size_t most_;
  bool pointwise_;
  std::size_t pixels_;
  std::size_t rows_, length_, phases_, per_row_;
  std::size_t even_, longer_;  // length of a tile, and how many are one longer, where phases_ is 1
};

// Tells whether workers share the pixels of a convolution, so that each packs all of its weights,
// and not the filters. Pixels are better where activations are more than weights: a worker then
// reads the activations that it wrote, and no two write into one cache line.
inline bool shares_pixels(const Convolution& call, std::size_t workers) {
  const Window& w = call.window;
  const std::size_t pixels = call.batch * w.output[0] * w.output[1] * w.output[2];
  const std::size_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  const std::size_t activations = pixels * (call.filters + call.in_channels);
  const std::size_t weights = call.filters * call.reduction * taps;
  return workers > 1 && pixels >= 4 * kMaxPixels * workers && activations >= weights;
}

// How a convolution is cut: panels that a unit of work takes, and rows and taps of a pass.
struct Cut {
  static constexpr std::size_t kMaxPanels = 32;

  std::size_t panels, rows, taps;
  bool merged;         // whether taps of a kernel's row may count as one
  bool shares_pixels;  // whether workers share the pixels, not the panels

  Cut(const Convolution& call, std::size_t workers)
      : shares_pixels(conv::shares_pixels(call, workers)) {
    const Panels all(call.filters / call.groups);
    const Window& w = call.window;
    const std::size_t every_tap = w.kernel[0] * w.kernel[1] * w.kernel[2];
    const std::size_t widest = kPanelBlocks * kBlock;
    // Tiles need not be full.
    const std::size_t pixels = call.batch * w.output[0] * w.output[1] * w.output[2];
    const std::size_t kept = (pixels + kMaxPixels - 1) / kMaxPixels * kMaxPixels * 2;
    const std::size_t at_once = kPanel / (widest * every_tap * call.reduction);
    const std::size_t waiting = kPartial / (widest * kept);
    const std::size_t share = shares_pixels ? all.count : (all.count + workers - 1) / workers;
    const std::size_t most = call.packed != nullptr ? at_once : std::max(at_once, waiting);
    panels = std::min({std::max(most, std::size_t{1}), share, kMaxPanels});
    const std::size_t fit = std::min(kPanel / (all.first_block(panels) * kBlock), kMaxRows);
    rows = std::min(call.reduction, fit);
    taps = std::min({every_tap, fit / rows, kMaxTaps});
    const std::size_t across = w.kernel[2];
    merged = across > 1 && !call.transposed && rows == call.reduction && taps >= across &&
             across * rows <= kMaxRows;
    if (merged) taps -= taps % across;
  }
};

// Part of the reduction.
struct Range {
  std::size_t tap, last_tap, row, last_row;
  std::size_t rows() const { return (last_tap - tap) * (last_row - row); }
};

// The stored weights of a range and some filters, line after line, to be fetched before they are
// read: late layers hold more weights than caches do, and the sums leave the memory idle.
class Ahead {
 public:
  Ahead() = default;
  // Of the filters, `first` to `last` in parts of kAll, as nearly as they lie in order.
  Ahead(const Convolution& call, const Range& range, std::size_t first, std::size_t last)
      : call_(&call), range_(range), first_(first), last_(last), tap_(range.tap) {}

  // The next piece that lies in one place; false where nothing is left.
  bool next(const char** begin, const char** end) {
    if (call_ == nullptr || call_->packed != nullptr) return false;
    while (slab_ < call_->slab_count) {
      const Slab& slab = call_->slabs[slab_];
      const std::size_t from = std::max(before_, range_.row);
      const std::size_t to = std::min(before_ + slab.used_rows, range_.last_row);
      if (from + row_ < to && tap_ < range_.last_tap) {
        if (row_ == 0) rows_ = Rows(slab, from - before_);
        const auto [row, count] = rows_.next_run(all_filters() ? to - from - row_ : 1);
        row_ += count;
        const float* const data = slab.data + (tap_ * slab.rows + row) * slab.filters;
        *begin = reinterpret_cast<const char*>(data + slab.filters * first_ / kAll);
        *end = *begin + count * (slab.filters * (last_ - first_) / kAll) * sizeof(float);
        return true;
      }
      row_ = 0;
      if (from < to && ++tap_ < range_.last_tap) continue;
      tap_ = range_.tap;
      if (!is_joined(*call_, slab_)) before_ += slab.used_rows;
      ++slab_;
    }
    return false;
  }

  static constexpr std::size_t kAll = 1024;

 private:
  bool all_filters() const { return first_ == 0 && last_ == kAll; }

  const Convolution* call_ = nullptr;
  Range range_{};
  std::size_t first_ = 0, last_ = kAll;
  std::size_t slab_ = 0, before_ = 0, tap_ = 0, row_ = 0;
  Rows rows_;  // behind `row_` of them
};

// One unit of work: panels of filters side by side on a share of the tiles.
//
// The reduction is cut into passes whose panels fit L2; sums wait in between where there are
// several. Packing reads stored rows from end to end as far as the panels go, which memory likes;
// small maps, where packing weighs most, therefore take many panels and short passes.
class Unit {
 public:
  Unit(const Convolution& call, const Epilogue& epilogue, const Cut& cut, std::size_t group,
       std::size_t first_panel, std::size_t last_panel, const Parallel& parallel,
       std::size_t worker)
      : call_(call),
        epilogue_(epilogue),
        cut_(cut),
        group_(group),
        scratch_(parallel.scratch + worker * kScratchBytes) {
    taps_ = call.window.kernel[0] * call.window.kernel[1] * call.window.kernel[2];
    const std::size_t per_group = call.filters / call.groups;
    const Panels panels(per_group);
    const std::size_t first = panels.first_block(first_panel);
    first_filter_ = first * kBlock;
    width_ = panels.first_block(last_panel) * kBlock - first_filter_;
    filters_ = std::min(per_group - first_filter_, width_);
    count_ = last_panel - first_panel;
    share_begin_ = Ahead::kAll * first_panel / panels.count;
    share_end_ = Ahead::kAll * last_panel / panels.count;
    if (last_panel < panels.count) {
      const std::size_t following = std::min(panels.count, last_panel + cut.panels);
      upcoming_ = Ahead(call, pass_at(0, 0), share_end_, Ahead::kAll * following / panels.count);
    } else if (parallel.next != nullptr) {
      const Convolution& next = *parallel.next;
      const Cut its(next, parallel.workers);
      const std::size_t of = Panels(next.filters / next.groups).count;
      upcoming_ = Ahead(next, {0, its.taps, 0, its.rows}, 0, Ahead::kAll * its.panels / of);
    }
    for (std::size_t i = 0; i < count_; ++i) {
      const std::size_t block = panels.first_block(first_panel + i);
      const std::size_t blocks = panels.first_block(first_panel + i + 1) - block;
      panels_[i].begin = (block - first) * kBlock;
      panels_[i].blocks = blocks;
      panels_[i].filters = std::min(filters_ - panels_[i].begin, blocks * kBlock);
    }
    if (call.packed != nullptr) {
      const std::size_t whole = panels.blocks * kBlock * taps_ * call.reduction;
      packed_ = call.packed + group * whole + first_filter_ * taps_ * call.reduction;
    }
    pick();
  }

  // Runs the tiles of a share.
  void run(std::size_t begin, std::size_t end) {
    // A panel is streamed from L2 once per tile, which is as fast as the sums where a tile has at
    // least kFewPixels: narrow maps take narrower tiles of more pixels.
    const std::size_t blocks = panels_[0].blocks;  // the first is as wide as any
    std::size_t pieces = (blocks + kTileBlocks - 1) / kTileBlocks;
    for (std::size_t mean = tile_pixels(blocks, pieces); pieces < blocks && mean < kFewPixels;
         ++pieces) {
      const std::size_t next = tile_pixels(blocks, pieces + 1);
      if (next == mean) break;
      mean = next;
    }
    piece_ = (blocks + pieces - 1) / pieces;
    const Tiling tiling(call_, most_pixels(piece_));
    std::fill_n(scratch_.zeros, std::min(call_.in_channels, kZeroRow), 0.0F);
    if (call_.index == nullptr) {
      std::iota(scratch_.identity, scratch_.identity + std::min(call_.reduction, kMaxRows), 0);
    }
    begin = tiling.count() * begin / kShares;
    end = tiling.count() * end / kShares;
    merged_ = cut_.merged;
    if (merged_) merge_index();
    const bool once = cut_.rows == call_.reduction && cut_.taps == taps_;
    const std::size_t batch = once ? end - begin : kPartial / (kMaxPixels * width_);
    for (std::size_t from = begin; from < end; from += batch) {
      const std::size_t to = std::min(end, from + batch);
      for (Range range = pass_at(0, 0);;) {
        const Range next = after(range);
        const bool last = next.last_row == 0;
        ahead_ = !last ? Ahead(call_, next, share_begin_, share_end_) : upcoming_;
        pass(tiling, from, to, range);
        if (last) break;
        range = next;
      }
    }
  }

  static constexpr std::size_t kShares = std::size_t{1} << 20;  // a whole, as shares of the tiles

 private:
  struct Panel {
    std::size_t begin;  // its first filter, counted from the unit's
    std::size_t blocks;
    std::size_t filters;
  };

  Range pass_at(std::size_t tap, std::size_t row) const {
    return {tap, std::min(taps_, tap + cut_.taps), row, std::min(call_.reduction, row + cut_.rows)};
  }
  // The pass behind one; the last one has none, and its `last_row` is 0.
  Range after(const Range& range) const {
    if (range.last_row < call_.reduction) return pass_at(range.tap, range.last_row);
    return range.last_tap < taps_ ? pass_at(range.last_tap, 0) : Range{};
  }

  void pick() {
    if (call_.residual_index == nullptr) return;
    const std::size_t first = group_ * (call_.filters / call_.groups) + first_filter_;
    for (std::size_t begin = 0; begin < filters_; begin += kBlock) {
      const std::size_t count = std::min(kBlock, filters_ - begin);
      picks_[begin / kBlock] =
          Pick(call_.residual_index + first + begin, count, call_.residual_channels);
    }
  }

  void pass(const Tiling& tiling, std::size_t from, std::size_t to, const Range& range) {
    if (call_.packed == nullptr) pack(range);
    Pass pass{};
    pass.pointers = scratch_.pointers;
    const std::size_t across = call_.window.kernel[2];
    const std::size_t channel = group_ * call_.reduction + range.row;
    const std::int32_t* const index =
        call_.index != nullptr ? call_.index + channel : scratch_.identity;
    const float* const x = call_.index != nullptr ? call_.x : call_.x + channel;
    pass.first = range.tap == 0 && range.row == 0;
    const bool last = range.last_tap == taps_ && range.last_row == call_.reduction;
    std::array<std::size_t, kMaxPixels> pixels;
    for (std::size_t number = from; number < to; ++number) {
      const std::size_t count = tiling.tile(number, pixels.data());
      const bool merged = merged_ && tiling.inside(pixels.data(), count);
      const std::size_t step = merged ? across : 1;
      pass.taps = (range.last_tap - range.tap) / step;
      pass.rows = (range.last_row - range.row) * step;
      pass.index = merged ? scratch_.merged : index;
      tiling.pointers(pixels.data(), count, range.tap, range.last_tap, step, x, scratch_.zeros,
                      scratch_.pointers);
      // Sums that need not wait for another pass stay where the last tile's were.
      pass.sums = scratch_.partial + (pass.first && last ? 0 : number - from) * kMaxPixels * width_;
      for (std::size_t i = 0; i < count_; ++i) {
        run_panel(pass, pixels.data(), count, panels_[i], range, last);
      }
    }
  }

  void run_panel(Pass& pass, const std::size_t* pixels, std::size_t count, const Panel& panel,
                 const Range& range, bool last) {
    const float* weights = scratch_.panel + panel.begin * range.rows();
    pass.step = panel.blocks * kBlock;
    if (call_.packed != nullptr) {
      weights = packed_ + panel.begin * taps_ * call_.reduction +
                (range.tap * call_.reduction + range.row) * pass.step;
    }
    for (std::size_t block = 0; block < panel.blocks; block += piece_) {
      const std::size_t wide = std::min(piece_, panel.blocks - block);
      const std::size_t filter = panel.begin + block * kBlock;
      const Tile tile = {pass.sums,
                         wide * kBlock,
                         pixels,
                         count,
                         group_ * (call_.filters / call_.groups) + first_filter_ + filter,
                         std::min(panel.filters - block * kBlock, wide * kBlock),
                         call_.residual_index != nullptr ? &picks_[filter / kBlock] : nullptr};
      if (fetched_ >= fetch_end_ && !ahead_.next(&fetched_, &fetch_end_)) {
        fetched_ = fetch_end_ = reinterpret_cast<const char*>(weights);
      }
      pass.ahead = fetched_;
      pass.ahead_last = fetch_end_ - 1;
      fetched_ += static_cast<std::ptrdiff_t>(pass.taps * pass.rows) * kLine;
      pass.weights = weights + block * kBlock;
      pass.end = last ? end_of(tile, wide) : End::kKeep;
      kTiles[wide][count](pass, epilogue_, tile);
      if (last && pass.end == End::kKeep) finish_tile(epilogue_, tile);
      pass.sums += count * wide * kBlock;
    }
  }

  // How the last pass over a tile can end.
  End end_of(const Tile& tile, std::size_t blocks) const {
    const bool second = epilogue_.y2 != nullptr;
    if (!epilogue_.clamp || (second && !epilogue_.clamp2)) return End::kKeep;
    if (tile.valid != blocks * kBlock) return End::kKeep;
    if (epilogue_.residual == nullptr) return second ? End::kPlainSecond : End::kPlain;
    if (tile.picks == nullptr) return second ? End::kSameSecond : End::kSame;
    for (std::size_t block = 0; block < blocks; ++block) {
      if (!tile.picks[block].near) return End::kKeep;
    }
    return second ? End::kPickedSecond : End::kPicked;
  }

  // Channels of all taps of a kernel's row, counted from the first tap.
  void merge_index() {
    const std::size_t between = call_.window.dilation[2] * call_.in_channels;
    std::int32_t* out = scratch_.merged;
    const std::int32_t* const index =
        call_.index != nullptr ? call_.index + group_ * call_.reduction : scratch_.identity;
    for (std::size_t tap = 0; tap < call_.window.kernel[2]; ++tap) {
      for (std::size_t r = 0; r < call_.reduction; ++r) {
        *out++ = static_cast<std::int32_t>(tap * between) + index[r];
      }
    }
  }

  std::size_t tile_pixels(std::size_t blocks, std::size_t pieces) const {
    return Tiling(call_, most_pixels((blocks + pieces - 1) / pieces)).mean();
  }

  // Packs the panels' rows for a part of the reduction.
  void pack(const Range& range) {
    std::size_t first = 0;
    for (std::size_t s = 0; s < call_.slab_count; ++s) {
      const Slab& slab = call_.slabs[s];
      const std::size_t begin = std::max(first, range.row);
      const std::size_t end = std::min(first + slab.used_rows, range.last_row);
      if (begin < end) {
        select(slab);
        const Rows used(slab, begin - first);
        for (std::size_t tap = range.tap; tap < range.last_tap; ++tap) {
          const std::size_t to =
              (tap - range.tap) * (range.last_row - range.row) + begin - range.row;
          pack_rows(slab, tap, used, end - begin, to, range.rows());
        }
      }
      if (!is_joined(call_, s)) first += slab.used_rows;
    }
  }

  void select(const Slab& slab) {
    if (selected_ != nullptr && selected_->bits == slab.bits &&
        selected_->filters == slab.filters && selected_->outputs == slab.outputs) {
      return;
    }
    selected_ = &slab;
    for (std::size_t i = 0; i < count_; ++i) {
      const std::size_t first = first_filter_ + panels_[i].begin;
      selections_[i] =
          Selection(slab, first, std::min(panels_[i].filters, call_.stored_filters - first));
    }
  }

  // A few rows at a time, so that they stay in L1 from one panel to the next.
  void pack_rows(const Slab& slab, std::size_t tap, Rows used, std::size_t rows, std::size_t to,
                 std::size_t of) {
    constexpr std::size_t kFewRows = 8;
    const std::size_t few = count_ == 1 ? kFewRows : kFewRows / 2;
    const float* const data = slab.data + tap * slab.rows * slab.filters;
    std::array<const float*, kFewRows> from;
    for (std::size_t row = 0; row < rows; row += few) {
      const std::size_t count = std::min(few, rows - row);
      for (std::size_t i = 0; i < count; ++i) from[i] = data + used.next() * slab.filters;
      for (std::size_t i = 0; i < count_; ++i) {
        const std::size_t width = panels_[i].blocks * kBlock;
        float* const out = scratch_.panel + panels_[i].begin * of + (to + row) * width;
        selections_[i].pack(from.data(), count, out, width);
      }
    }
  }

  const Convolution& call_;
  const Epilogue& epilogue_;
  const Cut& cut_;
  std::size_t group_;
  Scratch scratch_;
  std::size_t share_begin_, share_end_;  // of the filters, for `Ahead`
  Ahead ahead_, upcoming_;               // behind this pass, behind the last one
  const char* fetched_ = nullptr;
  const char* fetch_end_ = nullptr;
  std::size_t taps_, first_filter_, filters_, width_;
  std::size_t count_;
  std::array<Panel, Cut::kMaxPanels> panels_;
  std::size_t piece_ = 1;  // blocks of a panel that a tile takes
  bool merged_ = false;
  const float* packed_ = nullptr;
  std::array<Pick, Cut::kMaxPanels * kPanelBlocks> picks_;
  std::array<Selection, Cut::kMaxPanels> selections_;  // of the slab below and others with its bits
  const Slab* selected_ = nullptr;
};

struct Job {
  const Convolution* call;
  const Epilogue* epilogue;
  const Parallel* parallel;
  Cut cut;
  std::size_t panels;  // of a group
  std::size_t units;   // of a group
  std::size_t shares;  // of a unit's tiles

  void run(std::size_t unit, std::size_t share, std::size_t worker) const {
    const std::size_t first = unit % units * cut.panels;
    Unit work(*call, *epilogue, cut, unit / units, first, std::min(panels, first + cut.panels),
              *parallel, worker);
    work.run(Unit::kShares * share / shares, Unit::kShares * (share + 1) / shares);
  }
};

inline void run_share(void* argument, std::size_t share, std::size_t worker) {
  const Job& job = *static_cast<const Job*>(argument);
  for (std::size_t unit = 0; unit < job.call->groups * job.units; ++unit) {
    job.run(unit, share, worker);
  }
}

inline void run_unit(void* argument, std::size_t number, std::size_t worker) {
  const Job& job = *static_cast<const Job*>(argument);
  job.run(number / job.shares, number % job.shares, worker);
}

}  // namespace conv

inline void convolution(const Convolution& call, const Parallel& parallel) {
  const conv::Clamp clamp = conv::clamp_of(call.activation);
  const conv::Clamp clamp2 = conv::clamp_of(call.activation2);
  const conv::Epilogue epilogue = {call.scale,
                                   call.shift,
                                   call.residual,
                                   call.y,
                                   clamp.low,
                                   clamp.high,
                                   call.activation.code != 0,
                                   clamp.all,
                                   call.scale2,
                                   call.shift2,
                                   call.y2,
                                   clamp2.low,
                                   clamp2.high,
                                   clamp2.all,
                                   &call};
  const std::size_t panels = conv::Panels(call.filters / call.groups).count;
  const conv::Cut cut(call, parallel.workers);
  conv::Job job = {&call, &epilogue, &parallel, cut, panels, (panels + cut.panels - 1) / cut.panels,
                   1};
  if (cut.shares_pixels) {
    job.shares = parallel.workers;
    return parallel.run(parallel.self, job.shares, conv::run_share, &job);
  }
  const std::size_t units = call.groups * job.units;
  // The busiest worker should have at most an eighth more than its share.
  while (job.shares < 4 * parallel.workers) {
    const std::size_t total = units * job.shares;
    const std::size_t most = (total + parallel.workers - 1) / parallel.workers;
    if (most * parallel.workers * 8 <= total * 9) break;
    ++job.shares;
  }
  parallel.run(parallel.self, units * job.shares, conv::run_unit, &job);
}

}  // namespace mdprune::cpu::MDPRUNE_ISA

#undef MDPRUNE_UNROLL
