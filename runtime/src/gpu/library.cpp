#include "library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "failure.h"

namespace mdprune {
namespace {

constexpr char kName[] = "libmdprune_cuda.so";

// The folder of the file that holds this function, with the slash; empty if it cannot be told.
std::string own_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0) return "";
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

// Where the library may be, in order. Beside this one, then wherever the loader looks.
std::vector<std::string> places() {
  if (const char* named = std::getenv("MDPRUNE_CUDA_LIBRARY")) return {named};
  const std::string versioned = std::string(kName) + "." + MDPRUNE_VERSION_MAJOR;
  const std::string folder = own_folder();
  if (folder.empty()) return {versioned};
  return {folder + versioned, folder + kName, versioned};
}

const cuda::Library* load() {
  std::string why;
  for (const std::string& place : places()) {
    // It stays loaded: CUDA does not like to be unloaded.
    void* loaded = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (loaded == nullptr) {
      why = dlerror();
      continue;
    }
    const auto table =
        reinterpret_cast<decltype(&mdprune_cuda_library)>(dlsym(loaded, "mdprune_cuda_library"));
    const cuda::Library* library = table != nullptr ? table(cuda::kLibraryVersion) : nullptr;
    if (library != nullptr && library->version == cuda::kLibraryVersion &&
        library->bytes == sizeof(cuda::Library)) {
      return library;
    }
    dlclose(loaded);
    why = place + " is of another version";
  }
  throw Failure(MDP_UNSUPPORTED,
                "device cuda: the library of the CUDA kernels is not there: " + why);
}

mdp_status status_of(int error) {
  // Numbers of cudaError_t.
  constexpr int kMemoryAllocation = 2;
  constexpr int kInsufficientDriver = 35;
  constexpr int kNoDevice = 100;
  constexpr int kInvalidDevice = 101;
  constexpr int kNoKernelImageForDevice = 209;
  switch (error) {
    case kMemoryAllocation: return MDP_NO_MEMORY;
    case kInsufficientDriver:
    case kNoDevice:
    case kInvalidDevice:
    case kNoKernelImageForDevice: return MDP_UNSUPPORTED;
    default: return MDP_DEVICE;
  }
}

}  // namespace

const cuda::Library& cuda_library() {
  static std::mutex mutex;
  static const cuda::Library* library = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (library == nullptr) library = load();
  return *library;
}

void check(const cuda::Library& library, int error, const char* what) {
  if (error == 0) return;
  throw Failure(status_of(error),
                std::string("device cuda: ") + what + ": " + library.error_text(error));
}

OnDevice::OnDevice(const cuda::Library& library, int device) : library_(library) {
  int current = -1;
  check(library, library.current_device(&current), "no device");
  if (current == device) return;
  check(library, library.use_device(device), "no such device");
  before_ = current;
}

OnDevice::~OnDevice() {
  if (before_ >= 0) library_.use_device(before_);
}

DeviceBytes::DeviceBytes(const cuda::Library& library, std::size_t bytes)
    : library_(&library), size_(bytes) {
  if (bytes > 0) check(library, library.allocate(&data_, bytes), "memory");
}

DeviceBytes::DeviceBytes(DeviceBytes&& other) noexcept { *this = std::move(other); }

DeviceBytes& DeviceBytes::operator=(DeviceBytes&& other) noexcept {
  std::swap(library_, other.library_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

DeviceBytes::~DeviceBytes() {
  if (data_ != nullptr) library_->release(data_);
}

DeviceHandle::DeviceHandle(DeviceHandle&& other) noexcept { *this = std::move(other); }

DeviceHandle& DeviceHandle::operator=(DeviceHandle&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(destroy_, other.destroy_);
  return *this;
}

DeviceHandle::~DeviceHandle() {
  if (handle_ != nullptr) destroy_(handle_);
}

DeviceHandle make_stream(const cuda::Library& library) {
  void* stream = nullptr;
  check(library, library.create_stream(&stream), "a stream");
  return {stream, library.destroy_stream};
}

DeviceHandle make_event(const cuda::Library& library) {
  void* event = nullptr;
  check(library, library.create_event(&event), "an event");
  return {event, library.destroy_event};
}

}  // namespace mdprune
