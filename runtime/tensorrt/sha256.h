// SHA-256 (FIPS 180-4).

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mdprune::tensorrt {

// In lower-case hexadecimal.
std::string sha256(const std::uint8_t* data, std::size_t size);

}  // namespace mdprune::tensorrt
