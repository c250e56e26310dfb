#include "weights.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "files.h"
#include "sha256.h"

namespace mdprune::tensorrt {
namespace {

constexpr std::size_t kChunk = std::size_t{4} << 20;  // elements that are converted at once

std::mutex bundles_mutex;
std::vector<std::string>& bundles() {
  static std::vector<std::string> directories;
  return directories;
}

std::vector<std::string> known_bundles() {
  const std::lock_guard<std::mutex> lock(bundles_mutex);
  std::vector<std::string> found = bundles();
  if (const char* const listed = std::getenv("MDPRUNE_BUNDLE")) {
    std::istringstream names(listed);
    for (std::string name; std::getline(names, name, ':');) {
      if (!name.empty()) found.push_back(name);
    }
  }
  return found;
}

// The file with the hash, of the first bundle that has it.
MappedFile find(const WeightFile& file) {
  std::string looked;
  for (const std::string& bundle : known_bundles()) {
    looked += (looked.empty() ? "" : ", ") + bundle;
    try {
      MappedFile mapped = Directory(bundle.c_str()).directory("native").map(file.name);
      if (mapped.size() >= file.end && sha256(mapped.data(), mapped.size()) == file.sha256) {
        return mapped;
      }
    } catch (const std::exception&) {
      continue;  // another bundle may have it
    }
  }
  throw std::runtime_error(
      "no bundle has the weight file " + file.name + " with SHA-256 " + file.sha256 +
      "; looked in: " + (looked.empty() ? "none, name one in MDPRUNE_BUNDLE" : looked));
}

// To the nearest half, ties to even.
std::uint16_t to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return sign | 0x7e00U;   // not a number
  if (magnitude >= 0x477ff000U) return sign | 0x7c00U;  // rounds to infinity
  if (magnitude < 0x33000001U) return sign;             // rounds to zero
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  const std::uint32_t mantissa = (magnitude & 0x7fffffU) | 0x800000U;
  const int dropped = exponent < -14 ? 13 - 14 - exponent : 13;
  const std::uint32_t kept = mantissa >> dropped;
  const std::uint32_t rest = mantissa & ((1U << dropped) - 1), middle = 1U << (dropped - 1);
  const std::uint32_t up = rest > middle || (rest == middle && (kept & 1U) != 0) ? 1 : 0;
  // The leading bit of `kept` adds one to the exponent.
  const std::uint32_t base = exponent < -14 ? 0 : static_cast<std::uint32_t>(exponent + 14) << 10;
  return static_cast<std::uint16_t>(sign | (base + kept + up));
}

// What the registry knows the weights by: only clones of it are on the device.
class Resource final : public nvinfer1::IPluginResource {
 public:
  Resource(const WeightFile& file, cuda::Type type) : file_(file), type_(type) {}
  ~Resource() noexcept override { free_memory(); }

  // A clone whose weights could not be uploaded has none and says why: the registry keeps a null
  // pointer under the key for good, and the next try may go well.
  Resource* clone() noexcept override {
    try {
      auto made = std::make_unique<Resource>(file_, type_);
      try {
        made->upload();
      } catch (const std::exception& error) {
        made->free_memory();
        made->failure_ = error.what();
      }
      return made.release();
    } catch (const std::exception&) {
      return nullptr;
    }
  }

  std::int32_t release() noexcept override { return free_memory() == 0 ? 0 : -1; }

  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(memory_); }
  const std::string& failure() const { return failure_; }

 private:
  void upload() {
    const MappedFile mapped = find(file_);
    const std::uint8_t* const from = mapped.data() + file_.begin;
    const std::size_t count = (file_.end - file_.begin) / sizeof(float);
    check(launchers().allocate(&memory_, count * cuda::size_of(type_)), "allocating weights");
    void* stream = nullptr;
    check(launchers().create_stream(&stream), "creating a stream");
    const int error = copy(reinterpret_cast<const float*>(from), count, stream);
    const int last = launchers().destroy_stream(stream);
    check(error != 0 ? error : last, "uploading weights");
  }

  int copy(const float* from, std::size_t count, void* stream) {
    std::vector<std::uint16_t> halves(type_ == cuda::kHalf ? std::min(count, kChunk) : 0);
    for (std::size_t at = 0; at < count; at += kChunk) {
      const std::size_t size = std::min(kChunk, count - at);
      const void* chunk = from + at;
      if (type_ == cuda::kHalf) {
        std::transform(from + at, from + at + size, halves.begin(), to_half);
        chunk = halves.data();
      }
      const std::size_t width = cuda::size_of(type_);
      auto* const to = static_cast<std::uint8_t*>(memory_) + at * width;
      int error = launchers().to_device(to, chunk, size * width, stream);
      if (error == 0) error = launchers().wait(stream);  // the chunk is used again
      if (error != 0) return error;
    }
    return 0;
  }

  int free_memory() noexcept {
    const int error = memory_ == nullptr ? 0 : launchers().release(memory_);
    memory_ = nullptr;
    return error;
  }

  WeightFile file_;
  cuda::Type type_;
  void* memory_ = nullptr;
  std::string failure_;
};

}  // namespace

const cuda::Library& launchers() {
  static const cuda::Library* const library = mdprune_cuda_library(cuda::kLibraryVersion);
  if (library == nullptr) throw std::runtime_error("libmdprune_cuda is of another version");
  return *library;
}

void check(int error, const char* what) {
  if (error == 0) return;
  throw std::runtime_error(std::string("GatherConv: ") + what + ": " +
                           launchers().error_text(error));
}

bool add_bundle(const char* directory) {
  try {
    const Directory opened(directory);
  } catch (const std::exception&) {
    return false;
  }
  const std::lock_guard<std::mutex> lock(bundles_mutex);
  bundles().emplace_back(directory);
  return true;
}

DeviceWeights::DeviceWeights(const WeightFile& file, cuda::Type type)
    : begin_(file.begin), type_(type) {
  int device = 0;
  check(launchers().current_device(&device), "asking for the device");
  std::ostringstream key;
  key << "mdprune/" << file.sha256 << '/' << file.begin << '-' << file.end << '/'
      << (type == cuda::kHalf ? "fp16" : "fp32") << '/' << device;
  Resource source(file, type);
  auto* const found = getPluginRegistry()->acquirePluginResource(key.str().c_str(), &source);
  if (found == nullptr) throw std::runtime_error("GatherConv: there are no weights");
  key_ = key.str();
  data_ = static_cast<Resource*>(found)->data();
  if (data_ != nullptr) return;
  const std::string failure = static_cast<Resource*>(found)->failure();
  getPluginRegistry()->releasePluginResource(key_.c_str());
  throw std::runtime_error(failure);
}

DeviceWeights::DeviceWeights(DeviceWeights&& other) noexcept { *this = std::move(other); }

DeviceWeights& DeviceWeights::operator=(DeviceWeights&& other) noexcept {
  std::swap(key_, other.key_);
  std::swap(begin_, other.begin_);
  std::swap(type_, other.type_);
  std::swap(data_, other.data_);
  return *this;
}

DeviceWeights::~DeviceWeights() {
  if (!key_.empty()) getPluginRegistry()->releasePluginResource(key_.c_str());
}

const void* DeviceWeights::at(std::uint64_t offset) const {
  return data_ + (offset - begin_) / sizeof(float) * cuda::size_of(type_);
}

}  // namespace mdprune::tensorrt
