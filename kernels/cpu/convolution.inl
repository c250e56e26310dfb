// Convolutions and matrix products over a shared weight buffer.
//
//   acc[p, f] = sum over taps t and channels r of x[pixel(p, t), index[r]] * W[f, r, t]
//
// Lanes run over filters. Weights are read as panels (rows of up to 64 filters): those of a slab are
// packed into L2 as every GEMM packs them, except that filters which the domain does not use are left out
// on the way; a private copy is stored as panels already. Input channels are selected by the address
// alone: a row of a panel meets the activation at `index[r]`, so a subset costs what all channels cost.
// A tile of pixels holds one pointer per tap and pixel; outside the image the pointer leads to
// zeros, and a tap that is outside for the whole tile is skipped.

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <utility>

#include "activation.inl"
#include "kernels.h"
#include "vec.h"

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

// Layout of a worker's scratch memory, in floats.
constexpr std::size_t kZeroRow = 32768;   // the widest padded input whose tiles have several pixels
constexpr std::size_t kMaxTaps = 1024;    // per pass
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

// Sixteen values among many, at rising positions: out of the 32 behind the first of them, one
// permutation selects what is nearer than that.
struct Pick {
  alignas(64) std::int32_t from[kBlock];  // positions behind `first`
  std::size_t first;
  std::size_t count;
  bool near;  // and 32 values can be read

  Pick() = default;
  Pick(const std::int32_t* positions, std::size_t number, std::size_t limit)
      : first(static_cast<std::size_t>(positions[0])), count(number) {
    std::size_t furthest = 0;
    bool rising = true;
    for (std::size_t i = 0; i < kBlock; ++i) {
      from[i] = i < count ? positions[i] - positions[0] : 0;
      rising = rising && from[i] >= 0;
      furthest = std::max(furthest, static_cast<std::size_t>(std::max(from[i], 0)));
    }
    near = rising && furthest < 2 * kBlock && first + 2 * kBlock <= limit;
  }

  // Lanes [begin, begin + Vec::kLanes) of the sixteen, out of `values`; zeros behind the last one.
  Vec load(const float* values, std::size_t begin) const {
    values += first;
#if defined(__AVX512F__)
    if (near) {
      return {_mm512_permutex2var_ps(_mm512_loadu_ps(values), _mm512_load_si512(from),
                                     _mm512_loadu_ps(values + kBlock))};
    }
#endif
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
  bool clamp;  // whether `low` and `high` are all of the activation
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

// One pass over a tile: taps x rows of one panel, for up to eight pixels. Where a whole row of the
// kernel lies inside the image, its taps count as one, with as many more rows.
struct Pass {
  const float* const* pointers;  // taps x pixels; a tap whose first pointer is null is skipped
  std::size_t taps;
  const std::int32_t* index;
  std::size_t rows;
  const float* weights;     // taps x rows x `step`
  std::size_t step;         // floats from one row of the panel to the next
  float* partial;           // pixels x blocks x 16: sums between passes
  bool first;
  bool last;
  const std::size_t* pixels;  // numbers of the tile's output pixels
  std::size_t filter;         // the tile's first filter
  std::size_t filters;        // of y
  std::size_t valid;          // filters of the tile that exist
  const Pick* picks;          // of the residual, one per block; null: it has the filters' channels
  const Epilogue* epilogue;
};

template <std::size_t P, std::size_t V>
inline void multiply(const Pass& pass, Vec (&acc)[P][V]) {
  const float* w = pass.weights;
  const float* const* pointers = pass.pointers;
  const std::size_t step = pass.step;
  const std::int32_t* const end = pass.index + pass.rows;
  for (std::size_t tap = 0; tap < pass.taps; ++tap, pointers += P) {
    if (pointers[0] == nullptr) {
      w += pass.rows * step;
      continue;
    }
    const float* x[P];
#pragma GCC unroll 8
    for (std::size_t p = 0; p < P; ++p) x[p] = pointers[p];
    for (const std::int32_t* i = pass.index; i != end; ++i, w += step) {
      const std::ptrdiff_t channel = *i;
      Vec row[V];
#pragma GCC unroll 8
      for (std::size_t v = 0; v < V; ++v) row[v] = Vec::load(w + v * Vec::kLanes);
#pragma GCC unroll 8
      for (std::size_t p = 0; p < P; ++p) {
        const Vec value = Vec::all(x[p][channel]);
#pragma GCC unroll 8
        for (std::size_t v = 0; v < V; ++v) acc[p][v] = fma(value, row[v], acc[p][v]);
      }
    }
  }
}

// The activation of filters [first, first + count) of one pixel, in place, where it is no clamp.
inline void activate_row(float* y, std::size_t count, const Activation& activation) {
  with_activation(activation, [&](auto function) {
    std::size_t i = 0;
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) function(Vec::load(y + i)).store(y + i);
    if (i < count) function(Vec::load(y + i, count - i)).store(y + i, count - i);
  });
}

template <std::size_t P, std::size_t V>
inline void finish(const Pass& pass, const Vec (&acc)[P][V]) {
  const Epilogue& e = *pass.epilogue;
  const Vec low = Vec::all(e.low), high = Vec::all(e.high);
  const Vec low2 = Vec::all(e.low2), high2 = Vec::all(e.high2);
#pragma GCC unroll 8
  for (std::size_t v = 0; v < V; ++v) {
    const std::size_t begin = v * Vec::kLanes;
    if (begin >= pass.valid) break;
    const std::size_t count = std::min(pass.valid - begin, Vec::kLanes);
    const std::size_t filter = pass.filter + begin;
    const bool whole = count == Vec::kLanes;
    const auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load(p, count); };
    const auto store = [&](Vec value, float* p) {
      if (whole) {
        value.store(p);
      } else {
        value.store(p, count);
      }
    };
    const Vec scale = e.scale != nullptr ? load(e.scale + filter) : Vec::all(1.0F);
    const Vec shift = e.shift != nullptr ? load(e.shift + filter) : Vec::zero();
    const Vec scale2 = e.scale2 != nullptr ? load(e.scale2 + filter) : Vec::all(1.0F);
    const Vec shift2 = e.shift2 != nullptr ? load(e.shift2 + filter) : Vec::zero();
    const Pick* const pick = pass.picks != nullptr ? pass.picks + begin / kBlock : nullptr;
#pragma GCC unroll 8
    for (std::size_t p = 0; p < P; ++p) {
      const std::size_t at = pass.pixels[p] * pass.filters + filter;
      Vec value = fma(acc[p][v], scale, shift);
      if (pick != nullptr) {
        const float* const from = e.residual + pass.pixels[p] * e.call->residual_channels;
        value = value + pick->load(from, begin % kBlock);
      } else if (e.residual != nullptr) {
        value = value + load(e.residual + at);
      }
      value = min(high, max(low, value));
      store(value, e.y + at);
      if (e.y2 != nullptr && e.clamp) {
        store(min(high2, max(low2, fma(value, scale2, shift2))), e.y2 + at);
      }
    }
  }
}

// What a clamp cannot do, behind the stores: the tile is still in L1.
template <std::size_t P>
inline void finish_slowly(const Pass& pass) {
  const Epilogue& e = *pass.epilogue;
  for (std::size_t p = 0; p < P; ++p) {
    const std::size_t at = pass.pixels[p] * pass.filters + pass.filter;
    if (!e.clamp) activate_row(e.y + at, pass.valid, e.call->activation);
    if (e.y2 == nullptr) continue;
    if (!e.clamp) {
      for (std::size_t f = 0; f < pass.valid; ++f) {
        const float scale = e.scale2 != nullptr ? e.scale2[pass.filter + f] : 1.0F;
        const float shift = e.shift2 != nullptr ? e.shift2[pass.filter + f] : 0.0F;
        const float value = e.y[at + f] * scale + shift;
        e.y2[at + f] = std::min(e.high2, std::max(e.low2, value));
      }
    }
    if (!e.clamp2) activate_row(e.y2 + at, pass.valid, e.call->activation2);
  }
}

template <std::size_t P, std::size_t B>
void run_tile(const Pass& pass) {
  constexpr std::size_t V = B * kVectors;
  Vec acc[P][V];
#pragma GCC unroll 8
  for (std::size_t p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
      acc[p][v] = pass.first ? Vec::zero() : Vec::load(pass.partial + (p * V + v) * Vec::kLanes);
    }
  }
  multiply<P, V>(pass, acc);
  if (!pass.last) {
#pragma GCC unroll 8
    for (std::size_t p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (std::size_t v = 0; v < V; ++v) {
        acc[p][v].store(pass.partial + (p * V + v) * Vec::kLanes);
      }
    }
    return;
  }
  finish<P, V>(pass, acc);
  if (!pass.epilogue->clamp || !pass.epilogue->clamp2) finish_slowly<P>(pass);
}

using TileFunction = void (*)(const Pass&);

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
      : blocks((filters + kBlock - 1) / kBlock), count((blocks + kPanelBlocks - 1) / kPanelBlocks) {}
  std::size_t first_block(std::size_t panel) const {
    return panel * (blocks / count) + std::min(panel, blocks % count);
  }
};

// Where the used filters of one panel lie in the stored rows of a slab.
class Selection {
 public:
  Selection() = default;

  // `first` and `count`: the panel's filters, as the domain numbers them.
  Selection(const Slab& slab, std::size_t first, std::size_t count) : count_(count) {
    std::array<std::size_t, kPanelBlocks * kBlock> position;
    if (slab.bits == nullptr) {
      std::iota(position.begin(), position.begin() + count, first);
    } else {
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
    place(position, slab.filters);
  }

  // Packs `rows` stored rows, `stored` filters apart, into rows of `width` floats.
  void pack(const float* from, std::size_t stored, std::size_t rows, float* to,
            std::size_t width) const {
    // A few rows at a time, so that they stay in L1 from one block to the next.
    for (std::size_t row = 0; row < rows; row += kRows) {
      const std::size_t count = std::min(kRows, rows - row);
      for (std::size_t block = 0; block < width / kBlock; ++block) {
        pack_block(block, from + row * stored, stored, count, to + row * width + block * kBlock, width);
      }
    }
  }

 private:
#if defined(__AVX512F__)
  // Sixteen filters come from the 32 stored ones behind the first of them, and from further pairs
  // of vectors behind those where they lie wider apart.
  struct Block {
    alignas(64) std::int32_t from[kBlock];  // filters behind `first`; their low 5 bits permute a pair
    std::size_t first;
    std::size_t pairs;
    std::uint32_t second;   // lanes that come from the second pair
    bool whole;             // every lane is used, and a row holds all that unmasked loads read
    bool contiguous;
  };

  void place(const std::array<std::size_t, kPanelBlocks * kBlock>& position, std::size_t stored) {
    for (std::size_t begin = 0; begin < count_; begin += kBlock) {
      Block& block = blocks_[begin / kBlock];
      block.first = position[begin];
      if (stored % kBlock == 0) block.first -= block.first % kBlock;  // rows are aligned, so loads are
      const std::size_t count = std::min(kBlock, count_ - begin);
      const std::size_t span = position[begin + count - 1] - block.first + 1;
      block.pairs = (span + 2 * kBlock - 1) / (2 * kBlock);
      block.whole = count == kBlock && block.first + block.pairs * 2 * kBlock <= stored;
      block.contiguous = count == kBlock && span == kBlock;
      block.second = 0;
      for (std::size_t lane = 0; lane < kBlock; ++lane) {
        const std::size_t at = lane < count ? position[begin + lane] - block.first : 0;
        block.from[lane] = static_cast<std::int32_t>(at);
        if (at / (2 * kBlock) == 1) block.second |= std::uint32_t{1} << lane;
      }
    }
  }

  void pack_block(std::size_t number, const float* from, std::size_t stored, std::size_t rows,
                  float* to, std::size_t width) const {
    const Block& block = blocks_[number];
    from += block.first;
    const __m512i index = _mm512_load_si512(block.from);
    if (!block.whole || block.pairs > 2) {
      const std::size_t count = std::min(kBlock, count_ - number * kBlock);
      for (std::size_t row = 0; row < rows; ++row, from += stored, to += width) {
        for (std::size_t lane = 0; lane < count; ++lane) to[lane] = from[block.from[lane]];
        std::fill(to + count, to + kBlock, 0.0F);
      }
    } else if (block.contiguous) {
      for (std::size_t row = 0; row < rows; ++row, from += stored, to += width) {
        _mm512_storeu_ps(to, _mm512_loadu_ps(from));
      }
    } else if (block.pairs == 1) {
#pragma GCC unroll 4
      for (std::size_t row = 0; row < rows; ++row, from += stored, to += width) {
        _mm512_storeu_ps(to, pair(from, index));
      }
    } else {
      const auto second = static_cast<__mmask16>(block.second);
#pragma GCC unroll 4
      for (std::size_t row = 0; row < rows; ++row, from += stored, to += width) {
        const __m512 high = pair(from + 2 * kBlock, index);
        _mm512_storeu_ps(to, _mm512_mask_mov_ps(pair(from, index), second, high));
      }
    }
  }

  static __m512 pair(const float* from, __m512i index) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(from), index, _mm512_loadu_ps(from + kBlock));
  }

  std::array<Block, kPanelBlocks> blocks_;
#else
  void place(const std::array<std::size_t, kPanelBlocks * kBlock>& position, std::size_t) {
    std::copy_n(position.begin(), count_, position_.begin());
  }

  void pack_block(std::size_t number, const float* from, std::size_t stored, std::size_t rows,
                  float* to, std::size_t width) const {
    const std::size_t begin = number * kBlock, count = std::min(kBlock, count_ - begin);
    for (std::size_t row = 0; row < rows; ++row, from += stored, to += width) {
      for (std::size_t i = 0; i < count; ++i) to[i] = from[position_[begin + i]];
      std::fill(to + count, to + kBlock, 0.0F);
    }
  }

  std::array<std::size_t, kPanelBlocks * kBlock> position_;
#endif
  static constexpr std::size_t kRows = 8;
  std::size_t count_;
};

// Where tiles lie and what they read. Pixels are numbered row-major over (batch, output).
class Tiling {
 public:
  Tiling(const Convolution& call, std::size_t most)
      : call_(call),
        most_(most),
        pointwise_(is_pointwise(call)),
        pixels_(call.batch * call.window.output[0] * call.window.output[1] * call.window.output[2]) {
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
    for (std::size_t i = begin; i < end; ++i) pixels[i - begin] = row * length_ + phase + i * phases_;
    return end - begin;
  }

  // Tells whether every tap of a kernel's row is inside the image for all pixels of a tile, which lie
  // in one row of the output.
  bool inside(const std::size_t* pixels, std::size_t count) const {
    const Window& w = call_.window;
    const std::size_t first = pixels[0] % w.output[2] * w.stride[2];
    const std::size_t last = pixels[count - 1] % w.output[2] * w.stride[2];
    return first >= w.pad[2] &&
           last + (w.kernel[2] - 1) * w.dilation[2] < w.input[2] + w.pad[2];
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

  // Where the window of an output position begins. Transposed: the position that taps count back from.
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

// One unit of work: a panel of filters on a share of the tiles.
class Unit {
 public:
  Unit(const Convolution& call, const Epilogue& epilogue, std::size_t group, std::size_t panel,
       std::uint8_t* scratch)
      : call_(call), epilogue_(epilogue), group_(group), scratch_(scratch) {
    const Window& w = call.window;
    taps_ = w.kernel[0] * w.kernel[1] * w.kernel[2];
    const std::size_t per_group = call.filters / call.groups;
    const Panels panels(per_group);
    const std::size_t first = panels.first_block(panel);
    blocks_ = panels.first_block(panel + 1) - first;
    first_filter_ = first * kBlock;
    filters_ = std::min(per_group - first_filter_, blocks_ * kBlock);
    width_ = blocks_ * kBlock;
    if (call.residual_index != nullptr) {
      const std::int32_t* const from = call.residual_index + group * per_group + first_filter_;
      for (std::size_t block = 0; block < blocks_; ++block) {
        const std::size_t begin = block * kBlock, count = std::min(kBlock, filters_ - begin);
        picks_[block] = Pick(from + begin, count, call.residual_channels);
      }
    }
    if (call.packed != nullptr) {
      const std::size_t whole = panels.blocks * kBlock * taps_ * call.reduction;
      packed_ = call.packed + group * whole + first_filter_ * taps_ * call.reduction;
    }
  }

  // Runs the tiles of a share.
  void run(std::size_t begin, std::size_t end) {
    // A panel is streamed from L2 once per tile, which is as fast as the sums where a tile has at
    // least kFewPixels: narrow maps take narrower tiles of more pixels.
    pieces_ = (blocks_ + kTileBlocks - 1) / kTileBlocks;
    for (std::size_t mean = tile_pixels(pieces_); pieces_ < blocks_ && mean < kFewPixels; ++pieces_) {
      const std::size_t next = tile_pixels(pieces_ + 1);
      if (next == mean) break;
      mean = next;
    }
    const Tiling tiling(call_, most_pixels(piece_blocks()));
    std::fill_n(scratch_.zeros, std::min(call_.in_channels, kZeroRow), 0.0F);
    if (call_.index == nullptr) {
      std::iota(scratch_.identity, scratch_.identity + std::min(call_.reduction, kMaxRows), 0);
    }
    begin = tiling.count() * begin / kShares;
    end = tiling.count() * end / kShares;
    const std::size_t rows_fit = kPanel / width_;
    const std::size_t rows = std::min(call_.reduction, rows_fit);
    std::size_t taps = std::min({taps_, rows_fit / rows, kMaxTaps});
    const bool once = rows == call_.reduction && taps == taps_;
    const std::size_t across = call_.window.kernel[2];
    merged_ = across > 1 && !call_.transposed && rows == call_.reduction && taps >= across &&
              across * rows <= kMaxRows;
    if (merged_) {
      taps -= taps % across;
      merge_index();
    }
    const std::size_t batch = once ? end - begin : kPartial / (kMaxPixels * width_);
    for (std::size_t from = begin; from < end; from += batch) {
      const std::size_t to = std::min(end, from + batch);
      for (std::size_t tap = 0; tap < taps_; tap += taps) {
        for (std::size_t row = 0; row < call_.reduction; row += rows) {
          const std::size_t last_tap = std::min(taps_, tap + taps);
          const std::size_t last_row = std::min(call_.reduction, row + rows);
          pass(tiling, from, to, tap, last_tap, row, last_row);
        }
      }
    }
  }

  static constexpr std::size_t kShares = std::size_t{1} << 20;  // a whole, as shares of the tiles

 private:
  void pass(const Tiling& tiling, std::size_t from, std::size_t to, std::size_t tap,
            std::size_t last_tap, std::size_t row, std::size_t last_row) {
    Pass pass{};
    pass.pointers = scratch_.pointers;
    const std::size_t across = call_.window.kernel[2];
    const std::size_t channel = group_ * call_.reduction + row;
    const std::int32_t* const index =
        call_.index != nullptr ? call_.index + channel : scratch_.identity;
    const float* const x = call_.index != nullptr ? call_.x : call_.x + channel;
    pass.weights = weights(tap, last_tap, row, last_row);
    pass.step = width_;
    pass.first = tap == 0 && row == 0;
    pass.last = last_tap == taps_ && last_row == call_.reduction;
    pass.filters = call_.filters;
    pass.epilogue = &epilogue_;
    std::array<std::size_t, kMaxPixels> pixels;
    pass.pixels = pixels.data();
    for (std::size_t number = from; number < to; ++number) {
      const std::size_t count = tiling.tile(number, pixels.data());
      const bool merged = merged_ && tiling.inside(pixels.data(), count);
      const std::size_t step = merged ? across : 1;
      pass.taps = (last_tap - tap) / step;
      pass.rows = (last_row - row) * step;
      pass.index = merged ? scratch_.merged : index;
      tiling.pointers(pixels.data(), count, tap, last_tap, step, x, scratch_.zeros,
                      scratch_.pointers);
      for (std::size_t block = 0; block < blocks_; block += piece_blocks()) {
        const std::size_t wide = std::min(piece_blocks(), blocks_ - block);
        Pass part = pass;
        part.weights += block * kBlock;
        part.picks = call_.residual_index != nullptr ? picks_.data() + block : nullptr;
        part.filter = group_ * (call_.filters / call_.groups) + first_filter_ + block * kBlock;
        part.valid = std::min(filters_ - block * kBlock, wide * kBlock);
        part.partial = scratch_.partial + (number - from) * kMaxPixels * width_ +
                       block * kBlock * kMaxPixels;
        kTiles[wide][count](part);
      }
    }
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

  std::size_t piece_blocks() const { return (blocks_ + pieces_ - 1) / pieces_; }
  std::size_t tile_pixels(std::size_t pieces) const {
    return Tiling(call_, most_pixels((blocks_ + pieces - 1) / pieces)).mean();
  }

  // The panel's rows for a range of taps and of channels, as they are stored or packed here.
  const float* weights(std::size_t tap, std::size_t last_tap, std::size_t row,
                       std::size_t last_row) {
    if (call_.packed != nullptr) return packed_ + (tap * call_.reduction + row) * width_;
    std::size_t first = 0;
    for (std::size_t s = 0; s < call_.slab_count; ++s) {
      const Slab& slab = call_.slabs[s];
      const std::size_t begin = std::max(first, row), end = std::min(first + slab.rows, last_row);
      if (begin < end) {
        if (selected_ == nullptr || selected_->bits != slab.bits ||
            selected_->filters != slab.filters) {
          selection_ = Selection(slab, first_filter_, filters_);
          selected_ = &slab;
        }
        for (std::size_t t = tap; t < last_tap; ++t) {
          const float* from = slab.data + (t * slab.rows + begin - first) * slab.filters;
          float* to = scratch_.panel + ((t - tap) * (last_row - row) + begin - row) * width_;
          selection_.pack(from, slab.filters, end - begin, to, width_);
        }
      }
      first += slab.rows;
    }
    return scratch_.panel;
  }

  const Convolution& call_;
  const Epilogue& epilogue_;
  std::size_t group_;
  Scratch scratch_;
  std::size_t taps_, blocks_, first_filter_, filters_, width_;
  std::size_t pieces_ = 1;  // tiles side by side in a panel
  bool merged_ = false;
  const float* packed_ = nullptr;
  std::array<Pick, kPanelBlocks> picks_;
  Selection selection_;               // of the slab below, and of others with the same bits
  const Slab* selected_ = nullptr;
};

struct Job {
  const Convolution* call;
  const Epilogue* epilogue;
  const Parallel* parallel;
  std::size_t panels;
  std::size_t shares;
};

inline void run_unit(void* argument, std::size_t number, std::size_t worker) {
  const Job& job = *static_cast<const Job*>(argument);
  const std::size_t share = number % job.shares, panel = number / job.shares;
  Unit unit(*job.call, *job.epilogue, panel / job.panels, panel % job.panels,
            job.parallel->scratch + worker * kScratchBytes);
  unit.run(Unit::kShares * share / job.shares, Unit::kShares * (share + 1) / job.shares);
}

}  // namespace conv

inline void convolution(const Convolution& call, const Parallel& parallel) {
  const conv::Clamp clamp = conv::clamp_of(call.activation);
  const conv::Clamp clamp2 = conv::clamp_of(call.activation2);
  const conv::Epilogue epilogue = {call.scale,  call.shift,   call.residual, call.y,
                                   clamp.low,   clamp.high,   clamp.all,     call.scale2,
                                   call.shift2, call.y2,      clamp2.low,    clamp2.high,
                                   clamp2.all,  &call};
  const std::size_t panels = conv::Panels(call.filters / call.groups).count;
  conv::Job job = {&call, &epilogue, &parallel, panels, 1};
  const std::size_t units = call.groups * panels;
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
