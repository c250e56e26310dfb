// Times one convolution on a GPU, gathered and not: by measured tilings, the fastest of them.
//
//   cuda_convolution_bench PRECISION BATCH CHANNELS FILTERS KERNEL STRIDE SIZE ROUNDS
//
// The convolution reads half of CHANNELS and makes half of FILTERS. `gathered`: every second one on
// the average, drawn, of an input and a stored weight that have all; `plain`: an input and a weight
// that have no others. Results are compared with the CPU's; microseconds are printed as JSON.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/prepare.h"
#include "failure.h"
#include "gpu/library.h"
#include "gpu/tilings.h"

namespace mdprune {
namespace {

struct Shape {
  std::size_t batch, channels, filters, kernel, stride, size;
};

std::vector<float> noise(std::size_t count, unsigned seed, float scale) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

std::vector<std::int32_t> half_of(std::size_t count, unsigned seed) {
  std::vector<std::int32_t> all(count);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), std::mt19937(seed));
  all.resize(count / 2);
  std::sort(all.begin(), all.end());
  return all;
}

std::vector<std::uint32_t> bits_of(const std::vector<std::int32_t>& set, std::size_t size) {
  std::vector<std::uint32_t> bits((size + 31) / 32);
  for (const std::int32_t i : set) bits[std::size_t(i) / 32] |= 1U << (i % 32);
  return bits;
}

// A convolution on the host, with what it points at.
struct Problem {
  Problem(const Shape& s, bool gathered)
      : channels(gathered ? s.channels : s.channels / 2),
        filters(gathered ? s.filters : s.filters / 2),
        read(half_of(s.channels, 1)),
        row_bits(bits_of(read, s.channels)),
        filter_bits(bits_of(half_of(s.filters, 2), s.filters)) {
    const std::size_t out = (s.size + 2 * (s.kernel / 2) - s.kernel) / s.stride + 1;
    const std::size_t taps = s.kernel * s.kernel;
    const float scale_of_weights = 1.0F / std::sqrt(float(taps * s.channels / 2));
    weight = noise(taps * channels * filters, 3, scale_of_weights);
    x = noise(s.batch * s.size * s.size * channels, 4, 1.0F);
    y.resize(s.batch * out * out * s.filters / 2);
    scale = noise(s.filters / 2, 5, 1.0F);
    shift = noise(s.filters / 2, 6, 1.0F);
    slab = {weight.data(), channels, filters, nullptr, nullptr, s.channels / 2};
    if (gathered) {
      slab.bits = filter_bits.data();
      slab.row_bits = row_bits.data();
      convolution.index = read.data();
    }
    convolution.batch = s.batch;
    convolution.window = {{1, s.size, s.size},     {1, out, out}, {1, s.kernel, s.kernel},
                          {1, s.stride, s.stride}, {1, 1, 1},     {0, s.kernel / 2, s.kernel / 2}};
    convolution.groups = 1;
    convolution.in_channels = channels;
    convolution.filters = convolution.stored_filters = s.filters / 2;
    convolution.reduction = s.channels / 2;
    convolution.slabs = &slab;
    convolution.slab_count = 1;
    convolution.x = x.data();
    convolution.y = y.data();
    convolution.scale = scale.data();
    convolution.shift = shift.data();
    convolution.activation.code = kinds::kRelu;
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  std::size_t channels, filters;
  std::vector<std::int32_t> read;
  std::vector<std::uint32_t> row_bits, filter_bits;
  std::vector<float> weight, x, y, scale, shift;
  cpu::Slab slab{};
  cpu::Convolution convolution{};
};

class Device {
 public:
  Device() : library_(cuda_library()), stream_(make_stream(library_)) {
    int number = 0;
    check(library_, library_.current_device(&number), "no device");
    check(library_, library_.describe(number, &info_), "no device");
    begin_ = make_event(library_);
    end_ = make_event(library_);
  }

  const cuda::DeviceInfo& info() const { return info_; }

  DeviceBytes upload(const void* data, std::size_t size) const {
    DeviceBytes bytes(library_, size);
    check(library_, library_.to_device(bytes.data(), data, size, stream_.get()), "copying");
    return bytes;
  }

  DeviceBytes upload(const std::vector<float>& values, cuda::Type type) const {
    DeviceBytes floats = upload(values.data(), values.size() * sizeof(float));
    if (type == cuda::kFloat) return floats;
    DeviceBytes halves(library_, values.size() * 2);
    convert(cuda::kFloat, floats, type, halves, values.size());
    return halves;
  }

  std::vector<float> download(const DeviceBytes& bytes, cuda::Type type, std::size_t count) const {
    DeviceBytes floats(library_, count * sizeof(float));
    convert(type, bytes, cuda::kFloat, floats, count);
    std::vector<float> values(count);
    check(library_, library_.to_host(values.data(), floats.data(), floats.size(), stream_.get()),
          "copying");
    check(library_, library_.wait(stream_.get()), "copying");
    return values;
  }

  // Microseconds of the fastest tiling; writes the result of it.
  double time(const Problem& problem, cuda::Type type, int rounds, std::vector<float>& result) {
    const DeviceBytes weight = upload(problem.weight, type);
    const DeviceBytes x = upload(problem.x, type), y(library_, problem.y.size() * size_of(type));
    const DeviceBytes scale = upload(problem.scale, cuda::kFloat);
    const DeviceBytes shift = upload(problem.shift, cuda::kFloat);
    const void* weights[] = {weight.data()};
    const auto tables = cuda::prepare(problem.convolution, type, weights);
    const DeviceBytes on_device = upload(tables.bytes.data(), tables.bytes.size());
    cuda::Convolution now = cuda::bind(problem.convolution, type, tables, on_device.data());
    now.x = x.data();
    now.y = y.data();
    now.scale = reinterpret_cast<const float*>(scale.data());
    now.shift = reinterpret_cast<const float*>(shift.data());
    const auto tilings = candidates(library_, now, info_.multiprocessors);
    double best = INFINITY;
    for (const cuda::Tiling& tiling : tilings) {
      const double passed = time(now, tiling, rounds);
      if (passed >= best) continue;
      best = passed;
      result = download(y, type, problem.y.size());
    }
    return best;
  }

 private:
  static constexpr int kLaunches = 20;

  void convert(cuda::Type from, const DeviceBytes& x, cuda::Type to, const DeviceBytes& y,
               std::size_t count) const {
    const cuda::Launch launch{stream_.get(), info_.multiprocessors, nullptr, 0};
    check(library_, library_.convert({from, to, count, x.data(), y.data()}, launch), "converting");
    check(library_, library_.wait(stream_.get()), "converting");
  }

  // The median of rounds, each of some launches in one graph.
  double time(const cuda::Convolution& now, const cuda::Tiling& tiling, int rounds) {
    const DeviceBytes workspace(library_, library_.workspace_bytes(now, tiling));
    check(library_, library_.clear(workspace.data(), cuda::kCounterBytes, stream_.get()), "clear");
    const cuda::Launch launch{stream_.get(), info_.multiprocessors, workspace.data(),
                              workspace.size()};
    check(library_, library_.begin_graph(stream_.get()), "a graph");
    for (int i = 0; i < kLaunches; ++i) {
      check(library_, library_.convolution(now, tiling, launch), "the convolution");
    }
    void* captured = nullptr;
    check(library_, library_.end_graph(&captured, stream_.get()), "a graph");
    const DeviceHandle graph(captured, library_.destroy_graph);
    std::vector<float> times;
    for (int round = 0; round < rounds + 2; ++round) {
      check(library_, library_.record(begin_.get(), stream_.get()), "an event");
      check(library_, library_.launch_graph(graph.get(), stream_.get()), "a graph");
      check(library_, library_.record(end_.get(), stream_.get()), "an event");
      check(library_, library_.wait_event(end_.get()), "the convolution");
      float milliseconds = 0.0F;
      check(library_, library_.elapsed(&milliseconds, begin_.get(), end_.get()), "an event");
      if (round >= 2) times.push_back(milliseconds * 1e3F / kLaunches);
    }
    std::nth_element(times.begin(), times.begin() + long(times.size() / 2), times.end());
    return times[times.size() / 2];
  }

  const cuda::Library& library_;
  cuda::DeviceInfo info_{};
  const DeviceHandle stream_;
  DeviceHandle begin_, end_;
};

// max |y - r| / max |r| against the CPU's kernel.
double error_of(const Problem& problem, const std::vector<float>& y) {
  std::vector<std::uint8_t> scratch(cpu::kScratchBytes + 64);
  void* aligned = scratch.data();
  std::size_t space = scratch.size();
  std::align(64, cpu::kScratchBytes, aligned, space);
  const auto alone = [](void*, std::size_t count, cpu::Parallel::Body body, void* argument) {
    for (std::size_t i = 0; i < count; ++i) body(argument, i, 0);
  };
  const cpu::Parallel parallel{alone, nullptr, 1, static_cast<std::uint8_t*>(aligned)};
  cpu::find_kernels(nullptr)->convolution(problem.convolution, parallel);
  double error = 0.0;
  double largest = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error = std::max(error, std::fabs(double(y[i]) - problem.y[i]));
    largest = std::max(largest, std::fabs(double(problem.y[i])));
  }
  return error / largest;
}

int run(char** arguments) {
  const std::string precision = arguments[0];
  const auto number = [&](int i) { return std::size_t(std::strtoul(arguments[i], nullptr, 10)); };
  const Shape shape{number(1), number(2), number(3), number(4), number(5), number(6)};
  const bool half = precision == "float16";
  const cuda::Type type = half ? cuda::kHalf : cuda::kFloat;
  Device device;
  double microseconds[2];
  double error = 0.0;
  for (const bool gathered : {false, true}) {
    const Problem problem(shape, gathered);
    std::vector<float> y;
    microseconds[gathered] = device.time(problem, type, int(number(7)), y);
    error = std::max(error, error_of(problem, y));
  }
  if (!(error <= (half ? 5e-3 : 1e-5))) {
    std::fprintf(stderr, "the relative error is %g\n", error);
    return 1;
  }
  std::printf("{\"device\": \"%s\", \"plain\": %.4f, \"gathered\": %.4f, \"error\": %.3g}\n",
              device.info().name, microseconds[0], microseconds[1], error);
  return 0;
}

}  // namespace
}  // namespace mdprune

int main(int count, char** arguments) {
  if (count != 9) {
    std::fprintf(stderr,
                 "usage: %s float32|float16 BATCH CHANNELS FILTERS KERNEL STRIDE SIZE ROUNDS\n",
                 arguments[0]);
    return 2;
  }
  try {
    return mdprune::run(arguments + 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
