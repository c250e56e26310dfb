#include "tilings.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>

#include "activations.h"
#include "failure.h"

namespace mdprune {
namespace {

using Known = std::map<std::string, cuda::Tiling>;

// What decides how fast a tiling is.
std::string key_of(const cuda::Convolution& c) {
  std::ostringstream key;
  key << (c.type == cuda::kHalf ? "float16" : "float32") << ' ' << c.batch;
  for (const auto* axes : {&c.window.input, &c.window.output, &c.window.kernel, &c.window.stride,
                           &c.window.dilation, &c.window.pad}) {
    for (const std::size_t size : *axes) key << ' ' << size;
  }
  key << ' ' << c.transposed << ' ' << c.groups << ' ' << c.in_channels << ' ' << c.filters << ' '
      << c.reduction << ' ' << c.x_runs << ' ' << c.w_runs;
  return key.str();
}

std::string header_of(const cuda::DeviceInfo& info) {
  std::ostringstream header;
  header << "mdprune " << MDPRUNE_VERSION << " tilings, kernels " << cuda::kLibraryVersion
         << ", driver " << info.driver << ", runtime " << info.runtime << ", sm_" << info.major
         << info.minor << ", " << info.name;
  return header.str();
}

// The same for the same text, everywhere: FNV-1a.
std::string name_of(const std::string& header) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char letter : header) {
    hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3;
  }
  char name[40];
  std::snprintf(name, sizeof(name), "cuda-%016llx.tilings", static_cast<unsigned long long>(hash));
  return name;
}

// One line: the key, then the tiling.
bool read_line(const std::string& line, Known& known) {
  const std::size_t bar = line.find(" | ");
  if (bar == std::string::npos) return false;
  cuda::Tiling tiling{};
  char rest = '\0';
  const int read =
      std::sscanf(line.c_str() + bar, " | %d %d%c", &tiling.tile, &tiling.splits, &rest);
  if (read != 2) return false;
  known.emplace(line.substr(0, bar), tiling);
  return true;
}

Known read_file(const Model& model, const std::string& header) {
  constexpr std::size_t kMostBytes = std::size_t{16} << 20;
  Known known;
  try {
    const Directory native = Directory(model.path.c_str()).directory("native");
    const MappedFile file = native.map(name_of(header));
    if (file.size() > kMostBytes) return {};
    std::istringstream lines(std::string(reinterpret_cast<const char*>(file.data()), file.size()));
    std::string line;
    if (!std::getline(lines, line) || line != header) return {};
    while (std::getline(lines, line)) {
      if (!read_line(line, known)) return {};
    }
  } catch (const Failure&) {
    return {};
  }
  return known;
}

// A reader sees the old file or the new one. A folder that cannot be written keeps what it has.
void write_file(const Model& model, const std::string& header, const Known& known) {
  const std::string folder = model.path + "/native/";
  const std::string name = name_of(header);
  const std::string temporary = folder + std::to_string(::getpid()) + "-" + name;
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << header << '\n';
    for (const auto& [key, tiling] : known) {
      file << key << " | " << tiling.tile << ' ' << tiling.splits << '\n';
    }
    file.close();
    if (!file) {
      std::remove(temporary.c_str());
      return;
    }
  }
  if (std::rename(temporary.c_str(), (folder + name).c_str()) != 0) {
    std::remove(temporary.c_str());
  }
}

// Times tilings in memory of its own; what it computes is not looked at.
class Stopwatch {
 public:
  Stopwatch(const Model& model, const DeviceModel& on_device)
      : on_device_(on_device),
        library_(on_device.library()),
        activations_(model, on_device, true),
        stream_(make_stream(library_)),
        begin_(make_event(library_)),
        end_(make_event(library_)) {}

  cuda::Tiling fastest(std::size_t domain, std::size_t number,
                       const std::vector<cuda::Tiling>& tilings) {
    cuda::Tiling best = tilings.front();
    float least = std::numeric_limits<float>::infinity();
    for (const cuda::Tiling& tiling : tilings) {
      const float passed = time(domain, number, tiling);
      if (passed >= least) continue;
      least = passed;
      best = tiling;
    }
    return best;
  }

 private:
  static constexpr int kWarmUps = 2;
  static constexpr int kRounds = 5;
  static constexpr int kRunsPerRound = 4;

  // Milliseconds of the fastest round.
  float time(std::size_t domain, std::size_t number, const cuda::Tiling& tiling) {
    const DeviceDomain& prepared = on_device_.domains()[domain];
    tilings_.assign(prepared.convolutions.size(), tiling);
    const DeviceRun run = activations_.run(domain, tilings_.data(), stream_.get());
    const auto& launch = prepared.kernels[prepared.convolution_kernels[number]].launch;
    for (int i = 0; i < kWarmUps; ++i) check(library_, launch(run), "tuning");
    float least = std::numeric_limits<float>::infinity();
    for (int round = 0; round < kRounds; ++round) {
      check(library_, library_.record(begin_.get(), stream_.get()), "tuning");
      for (int i = 0; i < kRunsPerRound; ++i) check(library_, launch(run), "tuning");
      check(library_, library_.record(end_.get(), stream_.get()), "tuning");
      check(library_, library_.wait_event(end_.get()), "tuning");
      float passed = 0.0F;
      check(library_, library_.elapsed(&passed, begin_.get(), end_.get()), "tuning");
      least = std::min(least, passed);
    }
    return least;
  }

  const DeviceModel& on_device_;
  const cuda::Library& library_;
  const DeviceActivations activations_;
  const DeviceHandle stream_, begin_, end_;
  std::vector<cuda::Tiling> tilings_;
};

bool contains(const std::vector<cuda::Tiling>& tilings, const cuda::Tiling& tiling) {
  return std::any_of(tilings.begin(), tilings.end(), [&](const cuda::Tiling& one) {
    return one.tile == tiling.tile && one.splits == tiling.splits;
  });
}

}  // namespace

std::vector<cuda::Tiling> candidates(const cuda::Library& library,
                                     const cuda::Convolution& convolution, int multiprocessors) {
  constexpr std::size_t kMost = 256;
  std::vector<cuda::Tiling> tilings(kMost);
  tilings.resize(library.candidates(convolution, multiprocessors, tilings.data(), kMost));
  if (tilings.empty()) tilings.push_back(library.choose(convolution, multiprocessors));
  return tilings;
}

Tilings find_tilings(const Model& model, DeviceModel& on_device, bool measure) {
  const std::lock_guard<std::mutex> lock(on_device.tuning());
  const std::string header = header_of(on_device.info());
  Known known = read_file(model, header);
  std::unique_ptr<Stopwatch> stopwatch;
  Tilings chosen;
  for (std::size_t d = 0; d < on_device.domains().size(); ++d) {
    chosen.emplace_back();
    const auto& convolutions = on_device.domains()[d].convolutions;
    for (std::size_t i = 0; i < convolutions.size(); ++i) {
      const auto possible =
          candidates(on_device.library(), convolutions[i], on_device.info().multiprocessors);
      const std::string key = key_of(convolutions[i]);
      const auto found = known.find(key);
      if (found != known.end() && contains(possible, found->second)) {
        chosen.back().push_back(found->second);
      } else if (measure) {
        if (stopwatch == nullptr) stopwatch = std::make_unique<Stopwatch>(model, on_device);
        chosen.back().push_back(known[key] = stopwatch->fastest(d, i, possible));
      } else {
        chosen.back().push_back(possible.front());
      }
    }
  }
  if (stopwatch != nullptr) write_file(model, header, known);
  return chosen;
}

}  // namespace mdprune
