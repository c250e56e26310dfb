#include "kernel_cases.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

namespace mdprune {
namespace {

using cpu::Activation;
using cpu::Kernels;
using cpu::Parallel;
using Floats = std::vector<float>;
using Sizes = std::vector<std::size_t>;

// Set while a case of half precision draws its inputs.
thread_local bool drawing_halves = false;

// To 11 binary digits.
float round_to_half(float value) {
  int exponent = 0;
  const float digits = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(digits, 11)), exponent - 11);
}

class Random {
 public:
  explicit Random(const std::string& seed) : engine_(std::hash<std::string>()(seed)) {}
  std::size_t below(std::size_t limit) { return engine_() % limit; }
  Floats floats(std::size_t count, float low = -2.0F, float high = 2.0F) {
    std::uniform_real_distribution<float> distribution(low, high);
    Floats values(count);
    for (float& value : values) {
      value = distribution(engine_);
      if (drawing_halves) value = round_to_half(value);
    }
    return values;
  }
  std::vector<std::int32_t> index(std::size_t count, std::size_t limit) {
    std::vector<std::int32_t> values(count);
    for (auto& value : values) value = static_cast<std::int32_t>(below(limit));
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

std::size_t volume(const Sizes& sizes) {
  std::size_t product = 1;
  for (const std::size_t size : sizes) product *= size;
  return product;
}

struct WindowCase {
  Sizes input, output, kernel, stride, dilation, pad;  // three each

  cpu::Window window() const {
    cpu::Window w{};
    std::copy(input.begin(), input.end(), w.input);
    std::copy(output.begin(), output.end(), w.output);
    std::copy(kernel.begin(), kernel.end(), w.kernel);
    std::copy(stride.begin(), stride.end(), w.stride);
    std::copy(dilation.begin(), dilation.end(), w.dilation);
    std::copy(pad.begin(), pad.end(), w.pad);
    return w;
  }
};

const WindowCase kPoint{{1, 1, 13}, {1, 1, 13}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
const WindowCase kSame{{1, 9, 11}, {1, 9, 11}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}};
const WindowCase kStride{{1, 8, 7}, {1, 4, 4}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}};
const WindowCase kDilated{{1, 9, 10}, {1, 9, 10}, {1, 3, 3}, {1, 1, 1}, {1, 2, 3}, {0, 2, 3}};
const WindowCase kVolume{{4, 5, 6}, {4, 3, 6}, {3, 3, 3}, {1, 2, 1}, {1, 1, 1}, {1, 1, 1}};
const WindowCase kWide{{1, 1, 33}, {1, 1, 31}, {1, 1, 7}, {1, 1, 1}, {1, 1, 1}, {0, 0, 2}};
// Output rows beyond the input: the padding at the end is longer than the window.
const WindowCase kBeyond{{1, 3, 3}, {1, 6, 5}, {1, 2, 2}, {1, 1, 1}, {1, 1, 1}, {0, 2, 1}};

struct StoredSlab {
  std::size_t rows, filters;
  std::size_t used_rows = 0;  // 0: all, without a bit set
  std::size_t outputs = 0;    // filters that it has of the output, drawn; 0: all
  bool joins = false;         // has the others, in the rows of the slab before
};

struct ConvolutionCase {
  WindowCase window = kSame;
  std::size_t batch = 1, channels = 8, groups = 1, filters = 16;
  std::vector<StoredSlab> slabs;  // none: packed
  std::size_t reduction = 0;      // packed: per group
  std::size_t missing = 0;        // filters at the end without weights
  std::size_t block = 1;          // index and bit sets are runs of as many, aligned
  bool residual_index = false;    // the residual has 5 channels more
  bool index = false, scale = true, residual = false, second = false, transposed = false;
  Activation activation = {};
};

// A bit set with `chosen` of `count` bits, in runs of `block`.
std::vector<std::uint32_t> choose(Random& random, std::size_t count, std::size_t chosen,
                                  std::size_t block) {
  std::vector<std::uint32_t> bits((count + 31) / 32);
  for (std::size_t done = 0; done < chosen; done += block) {
    std::size_t j = 0;
    do {
      j = random.below(count / block) * block;
    } while ((bits[j / 32] >> (j % 32) & 1U) != 0);
    for (std::size_t i = j; i < j + block; ++i) bits[i / 32] |= 1U << (i % 32);
  }
  return bits;
}

std::vector<std::int32_t> choose_index(Random& random, std::size_t count, std::size_t limit,
                                       std::size_t block) {
  const auto blocks = random.index(count / block, limit / block);
  std::vector<std::int32_t> index;
  for (std::size_t i = 0; i < count; ++i) {
    index.push_back(static_cast<std::int32_t>(std::size_t(blocks[i / block]) * block + i % block));
  }
  return index;
}

Floats run_convolution(const ConvolutionCase& c, const std::string& name, const Kernels& kernels,
                       const Parallel& parallel) {
  Random random(name);
  const std::size_t taps = volume(c.window.kernel);
  const std::size_t outputs = c.batch * volume(c.window.output) * c.filters;
  cpu::Convolution call{};
  call.batch = c.batch;
  call.window = c.window.window();
  call.transposed = c.transposed;
  call.groups = c.groups;
  call.in_channels = c.channels;
  call.filters = c.filters;
  call.stored_filters = c.filters - c.missing;
  std::vector<Floats> data;
  std::vector<std::vector<std::uint32_t>> bits;
  std::vector<cpu::Slab> slabs;
  for (const StoredSlab& stored : c.slabs) {
    data.push_back(random.floats(taps * stored.rows * stored.filters));
    const auto bit_set = [&](std::size_t count, std::size_t chosen) {
      bits.push_back(choose(random, count, chosen, c.block));
      return bits.back().data();
    };
    cpu::Slab slab{data.back().data(), stored.rows, stored.filters, nullptr, nullptr, stored.rows};
    std::size_t used = call.stored_filters;
    if (stored.outputs != 0) {
      used = stored.outputs;
      slab.outputs = bit_set(call.stored_filters, used);
    } else if (stored.joins) {
      std::vector<std::uint32_t> others(slabs.back().outputs,
                                        slabs.back().outputs + (call.stored_filters + 31) / 32);
      for (std::size_t f = 0; f < 32 * others.size(); ++f) {
        if (f < call.stored_filters) others[f / 32] ^= 1U << (f % 32);
      }
      bits.push_back(others);
      slab.outputs = bits.back().data();
      slab.joins = true;
      used = 0;
      for (std::uint32_t word : others) {
        for (; word != 0; word &= word - 1) ++used;
      }
    }
    if (stored.filters != used) slab.bits = bit_set(stored.filters, used);
    if (stored.used_rows != 0) {
      slab.row_bits = bit_set(stored.rows, stored.used_rows);
      slab.used_rows = stored.used_rows;
    }
    slabs.push_back(slab);
    if (!slab.joins) call.reduction += slab.used_rows;
  }
  if (slabs.empty()) {
    const std::size_t per_group = c.filters / c.groups;
    const std::size_t blocks = (per_group + 15) / 16;
    call.reduction = c.reduction;
    data.push_back(random.floats(c.groups * blocks * taps * c.reduction * 16));
    call.packed = data[0].data();
  } else {
    call.slabs = slabs.data();
    call.slab_count = slabs.size();
  }
  const Floats x = random.floats(c.batch * volume(c.window.input) * c.channels);
  const auto index = choose_index(random, c.groups * call.reduction, c.channels, c.block);
  const Floats scale = random.floats(c.filters), shift = random.floats(c.filters);
  const Floats scale2 = random.floats(c.filters), shift2 = random.floats(c.filters);
  const Floats residual = random.floats(outputs);
  Floats y(outputs, 77.0F), y2(outputs, 77.0F);
  call.x = x.data();
  call.y = y.data();
  call.index = c.index ? index.data() : nullptr;
  call.scale = c.scale ? scale.data() : nullptr;
  call.shift = c.scale ? shift.data() : nullptr;
  call.activation = c.activation;
  if (c.residual) {
    std::copy(residual.begin(), residual.end(), y.begin());
    call.residual = y.data();  // in place
    call.residual_channels = c.filters;
  }
  const std::size_t residual_channels = c.filters + 5;
  const Floats wide = random.floats(outputs / c.filters * residual_channels);
  auto picks = random.index(c.filters, residual_channels);
  if (c.residual_index) {
    if (c.batch == 1) std::sort(picks.begin(), picks.end());
    call.residual = wide.data();
    call.residual_index = picks.data();
    call.residual_channels = residual_channels;
  }
  if (c.second) {
    call.y2 = y2.data();
    call.scale2 = scale2.data();
    call.shift2 = shift2.data();
    call.activation2 = {cpu::kRelu, 0, 0};
  }
  kernels.convolution(call, parallel);
  if (c.second) y.insert(y.end(), y2.begin(), y2.end());
  for (std::size_t i = 0; i < y.size(); ++i) {  // what is behind the last filter is unspecified
    if (i % c.filters >= call.stored_filters) y[i] = 0.0F;
  }
  return y;
}

void add_convolutions(std::vector<KernelCase>& cases) {
  const auto add = [&](const std::string& name, const ConvolutionCase& c) {
    const auto run = [c, name](const Kernels& kernels, const Parallel& parallel) {
      return run_convolution(c, name, kernels, parallel);
    };
    cases.push_back({"convolution_" + name, run, 4e-6});
  };
  const std::vector<std::pair<std::string, WindowCase>> windows = {
      {"point", kPoint},   {"same", kSame}, {"stride", kStride}, {"dilated", kDilated},
      {"volume", kVolume}, {"wide", kWide}, {"beyond", kBeyond}};
  for (const auto& [name, window] : windows) {
    ConvolutionCase c;
    c.window = window;
    c.channels = 11;
    c.filters = 19;
    c.slabs = {{5, 19}, {3, 40}};
    c.index = true;
    c.activation = {cpu::kRelu, 0, 0};
    add(name + "_slabs", c);
    c.slabs = {{70, 40, 33}, {5, 19, 1}, {32, 19, 32}, {3, 40}, {40, 48, 9}};
    add(name + "_rows", c);
    c.missing = 2;
    c.slabs = {{5, 17}, {3, 40, 2}};
    add(name + "_missing", c);
    c.missing = 0;
    c.slabs = {{9, 12, 4, 11}, {4, 16, 0, 0, true}, {3, 19}, {40, 5, 9, 5}, {9, 14, 0, 0, true}};
    add(name + "_joined", c);
    c.slabs = {};
    c.reduction = 7;
    add(name + "_packed", c);
    c.batch = 3;
    c.groups = 2;
    c.filters = 34;
    c.index = false;
    c.channels = 14;
    add(name + "_groups", c);
  }
  for (const std::size_t filters : {1, 2, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 130}) {
    ConvolutionCase c;
    c.filters = filters;
    c.channels = 20;
    c.slabs = {{20, filters + 37}};
    c.residual = filters % 2 == 0;
    c.second = filters % 3 == 0;
    c.activation = {cpu::kSilu, 0, 0};
    add("filters_" + std::to_string(filters), c);
    c.slabs = {};
    c.reduction = 20;
    add("packed_filters_" + std::to_string(filters), c);
    c.residual = false;
    c.residual_index = true;
    add("residual_index_" + std::to_string(filters), c);
    c.batch = 2;  // positions in any order
    c.reduction = 0;
    c.slabs = {{20, filters}};
    add("residual_any_index_" + std::to_string(filters), c);
  }
  for (std::uint32_t code = 0; code < cpu::kActivationCodes; ++code) {
    if (code == cpu::kLog || code == cpu::kSqrt || code == cpu::kReciprocal) continue;
    if (code >= cpu::kSign && code <= cpu::kRound) continue;  // steps: rounding decides
    ConvolutionCase c;
    c.window = kPoint;
    c.slabs = {{8, 16}};
    c.residual = true;
    c.activation = {code, 0.3F, 0.6F};
    if (code == cpu::kExp) c.scale = false;
    if (code == cpu::kThresholdedRelu || code == cpu::kNot) continue;
    add("activation_" + std::to_string(code), c);
  }
  ConvolutionCase c;
  c.slabs = {{8, 16}};
  c.scale = false;
  add("plain", c);
  c.residual = c.second = true;
  add("second", c);
  c.transposed = true;
  c.residual = c.second = false;
  c.window = {{1, 4, 5}, {1, 8, 10}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}};
  add("transposed", c);
  c.window.dilation = {1, 2, 1};
  c.index = true;
  c.channels = 9;
  c.slabs = {{5, 20}, {6, 16}};
  c.batch = 2;
  add("transposed_slabs", c);
  c.slabs = {};
  c.groups = 2;
  c.reduction = 5;
  add("transposed_groups", c);
  c = {};
  c.window = {{1, 7, 7}, {1, 7, 7}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}};
  c.channels = 600;
  c.slabs = {{300, 90}, {1, 300}, {200, 80}};
  c.filters = 75;
  c.index = true;
  add("deep", c);
  c.slabs = {{700, 96, 300}, {1, 75}, {260, 75, 200}};
  add("deep_rows", c);
  c.slabs = {{700, 96, 300, 60}, {301, 15, 300, 0, true}, {260, 75, 200}};
  add("deep_joined", c);
  // More panels than a unit takes, several passes, and an epilogue that stays in registers.
  c.window = {{1, 7, 7}, {1, 7, 7}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  c.slabs = {{300, 2200}, {20, 2100}};
  c.filters = 2100;
  c.residual = c.second = true;
  c.activation = {cpu::kRelu, 0, 0};
  add("deep_and_wide", c);
  c.slabs = {{900, 2200, 300}, {21, 2100, 20}};
  add("deep_and_wide_rows", c);
  c.slabs = {{900, 2200, 300, 1990}, {300, 110, 0, 0, true}, {21, 2100, 20}};
  add("deep_and_wide_joined", c);
  c.residual = c.second = false;
  c.window = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  c.slabs = {{3000, 211}};
  c.filters = 200;
  add("linear", c);
  c.window = {{1, 40, 40}, {1, 6, 6}, {1, 33, 33}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  c.slabs = {{3, 5}};
  c.filters = 5;
  c.channels = 4;
  add("many_taps", c);
}

// Runs of channels and filters, as the layout pass makes them: what vector loads are for.
void add_runs(std::vector<KernelCase>& cases) {
  const auto add = [&](const std::string& name, const ConvolutionCase& c) {
    const auto run = [c, name](const Kernels& kernels, const Parallel& parallel) {
      return run_convolution(c, name, kernels, parallel);
    };
    cases.push_back({"convolution_runs_" + name, run, 4e-6});
  };
  ConvolutionCase c;
  c.index = true;
  c.block = 8;
  c.channels = 64;
  c.filters = 40;
  c.slabs = {{24, 64}, {16, 40}};
  c.activation = {cpu::kRelu, 0, 0};
  add("8", c);
  c.window = kStride;
  c.batch = 2;
  c.residual = c.second = true;
  c.slabs = {{48, 96, 32}, {16, 72}, {8, 40}};
  add("8_rows", c);
  c.window = kVolume;
  c.batch = 1;
  c.block = 16;
  c.filters = 80;
  c.slabs = {{32, 96}, {48, 80, 32}};
  add("16_volume", c);
  c.window = kBeyond;
  c.block = 1;
  c.index = c.second = false;
  c.channels = 80;
  add("all_filters", c);
  c.window = {{1, 4, 5}, {1, 8, 10}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}};
  c.transposed = true;
  c.block = 8;
  c.index = true;
  add("transposed", c);
  c = {};
  c.window = kPoint;
  c.channels = 300;
  c.filters = 64;
  c.slabs = {{300, 64}};
  add("of_4", c);  // 300 is a multiple of 4, not of 8
  c.window = kSame;
  c.channels = 32;
  c.filters = 48;
  c.groups = 2;
  c.slabs = {};
  c.reduction = 16;
  add("groups", c);
  c.filters = 36;
  c.residual = true;
  add("groups_tail", c);
  c.groups = 1;
  c.channels = 40;
  c.reduction = 40;
  c.filters = 130;
  add("packed", c);
  c.window = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  c.batch = 130;
  c.channels = c.reduction = 200;
  add("linear", c);
}

void add_windows(std::vector<KernelCase>& cases) {
  const std::vector<std::pair<std::string, WindowCase>> windows = {
      {"point", kPoint},   {"same", kSame}, {"stride", kStride}, {"dilated", kDilated},
      {"volume", kVolume}, {"wide", kWide}, {"beyond", kBeyond}};
  for (const auto& named : windows) {
    const WindowCase window = named.second;
    for (const std::size_t channels : {1, 3, 4, 16, 37}) {
      const std::string name = named.first + "_" + std::to_string(channels);
      for (const std::size_t multiplier : {1, 3}) {
        const auto depthwise = [=](const Kernels& kernels, const Parallel& parallel) {
          Random random(name);
          const std::size_t filters = channels * multiplier;
          const Floats x = random.floats(2 * volume(window.input) * channels);
          const Floats weight = random.floats(volume(window.kernel) * filters);
          const Floats scale = random.floats(filters), shift = random.floats(filters);
          Floats y = random.floats(2 * volume(window.output) * filters);
          const bool all = channels % 2 == 1;
          kernels.depthwise({2,
                             window.window(),
                             channels,
                             filters,
                             weight.data(),
                             x.data(),
                             y.data(),
                             all ? scale.data() : nullptr,
                             all ? shift.data() : nullptr,
                             all ? y.data() : nullptr,
                             {cpu::kHardSwish, 0, 0}},
                            parallel);
          return y;
        };
        cases.push_back({"depthwise_" + name + "x" + std::to_string(multiplier), depthwise});
      }
      for (const std::uint32_t kind : {0U, 1U, 2U}) {
        if (named.first == "beyond" && kind == 0) continue;  // the maximum of nothing
        const auto pool = [=](const Kernels& kernels, const Parallel& parallel) {
          const Floats x = Random(name).floats(2 * volume(window.input) * channels);
          Floats y(2 * volume(window.output) * channels);
          kernels.pool({2, window.window(), channels, kind, x.data(), y.data()}, parallel);
          return y;
        };
        cases.push_back({"pool_" + name + "_kind" + std::to_string(kind), pool});
      }
    }
  }
}

void add_elementwise(std::vector<KernelCase>& cases) {
  for (std::uint32_t code = 0; code < cpu::kActivationCodes; ++code) {
    const auto unary = [code](const Kernels& kernels, const Parallel& parallel) {
      const bool positive = code == cpu::kLog || code == cpu::kSqrt || code == cpu::kReciprocal;
      Floats x = Random("unary").floats(40003, positive ? 0.1F : -6.0F, 6.0F);
      x[3] = positive ? 1.0F : 0.0F;
      kernels.unary(x.size(), x.data(), x.data(), {code, 0.3F, 0.6F}, parallel);
      return x;
    };
    cases.push_back({"unary_" + std::to_string(code), unary});
  }
  for (const bool indexed : {false, true}) {
    for (const std::size_t n : {1, 5, 16, 61}) {
      const auto affine = [=](const Kernels& kernels, const Parallel& parallel) {
        Random random("affine");
        const std::size_t n_in = indexed ? 40 : n;
        const Floats x = random.floats(501 * n_in), scale = random.floats(n),
                     shift = random.floats(n);
        const auto index = random.index(n, n_in);
        Floats y(501 * n);
        kernels.affine(501, n_in, n, x.data(), y.data(), indexed ? index.data() : nullptr,
                       n == 5 ? nullptr : scale.data(), n == 16 ? nullptr : shift.data(),
                       {cpu::kClip, -1, 2}, parallel);
        return y;
      };
      cases.push_back({"affine_" + std::to_string(n) + (indexed ? "_index" : ""), affine});
    }
  }
  struct Strided {
    Sizes size, a, b;
  };
  const std::vector<Strided> shapes = {{{40001}, {1}, {1}},
                                       {{37}, {1}, {0}},
                                       {{37}, {0}, {1}},
                                       {{5, 3, 19}, {57, 19, 1}, {19, 0, 1}},
                                       {{5, 3, 19}, {3, 1, 0}, {57, 19, 1}},
                                       {{300, 90}, {0, 1}, {1, 0}},
                                       {{2, 1, 1}, {0, 0, 0}, {1, 0, 0}}};
  for (std::uint32_t kind = 0; kind < cpu::kBinaryKinds; ++kind) {
    for (std::size_t k = 0; k < shapes.size(); ++k) {
      const Strided s = shapes[k];
      const auto binary = [=](const Kernels& kernels, const Parallel& parallel) {
        Random random("binary");
        const bool power = kind == cpu::kPower || kind == cpu::kDivide;
        Floats a = random.floats(volume(s.size), power ? 0.2F : -2.0F);
        const Floats b = random.floats(volume(s.size), power ? 0.2F : -2.0F);
        a[0] = b[0];
        Floats y(volume(s.size));
        kernels.binary(kind, s.size.size(), s.size.data(), s.a.data(), s.b.data(), a.data(),
                       b.data(), y.data(), {k % 2 == 0 ? cpu::kIdentity : cpu::kTanh, 0, 0},
                       parallel);
        return y;
      };
      cases.push_back({"binary_" + std::to_string(kind) + "_" + std::to_string(k), binary, 4e-6});
    }
  }
  const auto select = [](const Kernels& kernels, const Parallel& parallel) {
    Random random("select");
    Floats c = random.floats(3000);
    for (std::size_t i = 0; i < c.size(); i += 2) c[i] = 0.0F;
    const Floats a = random.floats(15 * 3000), b = random.floats(15);
    const Sizes size = {15, 3000}, c_stride = {0, 1}, a_stride = {3000, 1}, b_stride = {1, 0};
    Floats y(15 * 3000);
    kernels.select(2, size.data(), c_stride.data(), a_stride.data(), b_stride.data(), c.data(),
                   a.data(), b.data(), y.data(), parallel);
    return y;
  };
  cases.push_back({"select", select, 0.0});
}

void add_reductions(std::vector<KernelCase>& cases) {
  const std::vector<Sizes> shapes = {{1, 1, 1},  {7, 5, 1},   {3, 1000, 1}, {2, 49, 37},
                                     {1, 70, 5}, {40, 33, 1}, {1, 3000, 64}};
  for (const Sizes& s : shapes) {
    const std::string name =
        std::to_string(s[0]) + "_" + std::to_string(s[1]) + "_" + std::to_string(s[2]);
    for (std::uint32_t kind = 0; kind < cpu::kReduceKinds; ++kind) {
      if (kind == cpu::kProduct && s[1] > 100) continue;  // leaves the range of float
      const auto reduce = [=](const Kernels& kernels, const Parallel& parallel) {
        const Floats x = Random(name).floats(volume(s), kind == cpu::kLogOfSum ? 0.1F : -1.7F);
        Floats y(s[0] * s[2]);
        kernels.reduce(kind, s[0], s[1], s[2], x.data(), y.data(), parallel);
        return y;
      };
      cases.push_back({"reduce_" + std::to_string(kind) + "_" + name, reduce});
    }
    for (const bool log : {false, true}) {
      const auto softmax = [=](const Kernels& kernels, const Parallel& parallel) {
        Floats x = Random(name).floats(volume(s), -30.0F, 90.0F);
        kernels.softmax(log, s[0], s[1], s[2], x.data(), x.data(), parallel);
        return x;
      };
      cases.push_back({(log ? "log_softmax_" : "softmax_") + name, softmax});
    }
    const auto normalize = [=](const Kernels& kernels, const Parallel& parallel) {
      Floats x = Random(name).floats(volume(s), 5.0F, 9.0F);
      kernels.normalize(1e-5F, s[0], s[1], s[2], x.data(), x.data(), parallel);
      return x;
    };
    // A mean of 7 costs bits of a difference of 1.
    cases.push_back({"normalize_" + name, normalize, 5e-6});
  }
}

void add_products(std::vector<KernelCase>& cases) {
  for (const Sizes& s : std::vector<Sizes>{
           {1, 1, 1}, {1, 64, 100}, {7, 5, 3}, {8, 30, 32}, {33, 65, 49}, {50, 64, 197}}) {
    const auto matmul = [=](const Kernels& kernels, const Parallel& parallel) {
      Random random("matmul");
      const Floats a = random.floats(s[0] * s[1]), b = random.floats(s[1] * s[2]);
      Floats y(s[0] * s[2]);
      kernels.matmul(s[0], s[1], s[2], a.data(), b.data(), y.data(), parallel);
      return y;
    };
    cases.push_back(
        {"matmul_" + std::to_string(s[0]) + "_" + std::to_string(s[1]) + "_" + std::to_string(s[2]),
         matmul});
  }
}

void add_movement(std::vector<KernelCase>& cases) {
  struct Strided {
    Sizes size;
    std::vector<std::ptrdiff_t> x, y;
    std::ptrdiff_t x_offset;
  };
  const std::vector<Strided> moves = {
      {{1}, {0}, {0}, 0},
      {{1000}, {-1}, {1}, 999},
      {{40, 50}, {50, 1}, {50, 1}, 0},
      {{300, 70}, {1, 300}, {70, 1}, 0},
      {{70, 3}, {1, 70}, {3, 1}, 0},
      {{5, 7, 9}, {9, 45, 1}, {63, 9, 1}, 0},
      {{2, 20, 4, 30}, {2400, 120, -30, 1}, {2400, 1, 600, 20}, 90},
  };
  for (std::size_t k = 0; k < moves.size(); ++k) {
    const Strided m = moves[k];
    const auto move = [=](const Kernels& kernels, const Parallel& parallel) {
      const Floats x = Random("move").floats(volume(m.size));
      Floats y(volume(m.size));
      kernels.move(m.size.size(), m.size.data(), m.x.data(), m.y.data(), x.data() + m.x_offset,
                   y.data(), parallel);
      return y;
    };
    cases.push_back({"move_" + std::to_string(k), move, 0.0});
  }
  for (const std::size_t inner : {1, 3, 16, 21}) {
    const auto gather = [=](const Kernels& kernels, const Parallel& parallel) {
      Random random("gather");
      const Floats x = random.floats(11 * 40 * inner);
      const auto index = random.index(301, 40);
      Floats y(11 * 301 * inner);
      kernels.gather(11, 40, inner, 301, index.data(), x.data(), y.data(), parallel);
      return y;
    };
    cases.push_back({"gather_" + std::to_string(inner), gather, 0.0});
    const auto interpolate = [=](const Kernels& kernels, const Parallel& parallel) {
      Random random("interpolate");
      const Floats x = random.floats(11 * 40 * inner), weight = random.floats(301 * 4);
      const auto index = random.index(301 * 4, 40);
      Floats y(11 * 301 * inner);
      kernels.interpolate(11, 40, inner, 301, 4, index.data(), weight.data(), x.data(), y.data(),
                          parallel);
      return y;
    };
    cases.push_back({"interpolate_" + std::to_string(inner), interpolate});
  }
}

}  // namespace

std::vector<KernelCase> kernel_cases(bool halves) {
  std::vector<KernelCase> cases;
  add_convolutions(cases);
  add_runs(cases);
  add_windows(cases);
  add_elementwise(cases);
  add_reductions(cases);
  add_products(cases);
  add_movement(cases);
  if (!halves) return cases;
  for (KernelCase& c : cases) {
    c.run = [run = c.run](const Kernels& kernels, const Parallel& parallel) {
      drawing_halves = true;
      auto y = run(kernels, parallel);
      drawing_halves = false;
      return y;
    };
  }
  return cases;
}

double difference(const std::vector<float>& y, const std::vector<float>& r) {
  if (y.size() != r.size()) return HUGE_VAL;
  double largest = 0;
  double difference = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    if (!std::isfinite(r[i])) {
      if (std::isnan(r[i]) ? !std::isnan(y[i]) : y[i] != r[i]) return HUGE_VAL;
      continue;
    }
    if (!std::isfinite(y[i])) return HUGE_VAL;
    largest = std::max(largest, std::abs(double(r[i])));
    difference = std::max(difference, std::abs(double(y[i]) - double(r[i])));
  }
  return difference == 0 ? 0 : difference / largest;
}

}  // namespace mdprune
