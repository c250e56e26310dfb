// Reads little-endian fields from bytes and refuses to leave them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "failure.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Bundles are mapped as they are: a little-endian processor is needed"
#endif

namespace mdprune {

class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::size_t left() const { return size_ - at_; }

  const std::uint8_t* bytes(std::uint64_t count) {
    require(count <= left(), "the file ends too early");
    const std::uint8_t* start = data_ + at_;
    at_ += static_cast<std::size_t>(count);
    return start;
  }

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)), sizeof(T));
    return value;
  }
  std::uint8_t u8() { return number<std::uint8_t>(); }
  std::uint32_t u32() { return number<std::uint32_t>(); }
  std::uint64_t u64() { return number<std::uint64_t>(); }

  std::string_view text() {
    const std::uint32_t length = u32();
    return {reinterpret_cast<const char*>(bytes(length)), length};
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
  std::size_t at_ = 0;
};

// UTF-8 without NUL; refuses what is not.
inline std::string_view checked_text(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    const std::size_t more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    require(
        first != 0 && (first < 0x80 || (first >= 0xC2 && first <= 0xF4)) && more < text.size() - i,
        "a text is not UTF-8");
    std::uint32_t code = more == 0 ? first : first & (0x3FU >> more);
    for (std::size_t k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      require((next & 0xC0U) == 0x80, "a text is not UTF-8");
      code = code << 6 | (next & 0x3FU);
    }
    const bool too_short = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    require(!too_short && !surrogate && code < 0x110000, "a text is not UTF-8");
    i += more + 1;
  }
  return text;
}

// The name of a file in the bundle's native directory.
inline std::string checked_file_name(std::string_view name) {
  checked_text(name);
  const bool plain = !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
                     name.find_first_of("/\\") == std::string_view::npos;
  require(plain, "a file's name is not a plain name");
  return std::string(name);
}

}  // namespace mdprune
