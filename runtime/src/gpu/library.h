// libmdprune_cuda, found and loaded when it is first asked for, and owners of what it gives.

#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/library.h"

namespace mdprune {

// Throws Failure with MDP_UNSUPPORTED and what is missing.
const cuda::Library& cuda_library();

// Throws Failure if `error` is one; `what` was tried.
void check(const cuda::Library& library, int error, const char* what);

// Makes a device the calling thread's while it lives.
class OnDevice {
 public:
  OnDevice(const cuda::Library& library, int device);
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice();

 private:
  const cuda::Library& library_;
  int before_ = -1;  // the device to go back to, or -1
};

// Owners; any device may be the thread's when they go.

class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(const cuda::Library& library, std::size_t bytes);  // 0: none
  DeviceBytes(DeviceBytes&& other) noexcept;
  DeviceBytes& operator=(DeviceBytes&& other) noexcept;
  ~DeviceBytes();

  std::uint8_t* data() const { return static_cast<std::uint8_t*>(data_); }
  std::size_t size() const { return size_; }

 private:
  const cuda::Library* library_ = nullptr;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// A stream, an event or a graph.
class DeviceHandle {
 public:
  using Destroy = int (*)(void*);
  DeviceHandle() = default;
  DeviceHandle(void* handle, Destroy destroy) : handle_(handle), destroy_(destroy) {}
  DeviceHandle(DeviceHandle&& other) noexcept;
  DeviceHandle& operator=(DeviceHandle&& other) noexcept;
  ~DeviceHandle();

  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;
  Destroy destroy_ = nullptr;
};

DeviceHandle make_stream(const cuda::Library& library);
DeviceHandle make_event(const cuda::Library& library);

}  // namespace mdprune
