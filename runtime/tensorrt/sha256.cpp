#include "sha256.h"

#include <array>
#include <cmath>
#include <cstring>

namespace mdprune::tensorrt {
namespace {

constexpr std::size_t kBlock = 64;
using State = std::array<std::uint32_t, 8>;

std::uint32_t rotate(std::uint32_t x, int n) { return x >> n | x << (32 - n); }

// The first 32 bits of the fractions of square and cube roots of the first primes.
struct Constants {
  State start;
  std::array<std::uint32_t, kBlock> rounds;

  Constants() {
    std::size_t found = 0;
    for (int candidate = 2; found < rounds.size(); ++candidate) {
      bool prime = true;
      for (int d = 2; d * d <= candidate; ++d) prime = prime && candidate % d != 0;
      if (!prime) continue;
      if (found < start.size()) start[found] = fraction(std::sqrt(static_cast<double>(candidate)));
      rounds[found++] = fraction(std::cbrt(static_cast<double>(candidate)));
    }
  }

  static std::uint32_t fraction(double root) {
    return static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0);
  }
};

void add_block(State& state, const std::uint8_t* block, const Constants& constants) {
  std::array<std::uint32_t, kBlock> w;
  for (std::size_t i = 0; i < 16; ++i) {
    w[i] = std::uint32_t{block[4 * i]} << 24 | std::uint32_t{block[4 * i + 1]} << 16 |
           std::uint32_t{block[4 * i + 2]} << 8 | block[4 * i + 3];
  }
  for (std::size_t i = 16; i < w.size(); ++i) {
    const std::uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
           (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
  }
  State s = state;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const std::uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
    const std::uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
    const std::uint32_t first = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                                choice + constants.rounds[i] + w[i];
    const std::uint32_t second = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) + majority;
    s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
  }
  for (std::size_t i = 0; i < s.size(); ++i) state[i] += s[i];
}

}  // namespace

std::string sha256(const std::uint8_t* data, std::size_t size) {
  static const Constants constants;
  State state = constants.start;
  std::size_t done = 0;
  for (; size - done >= kBlock; done += kBlock) add_block(state, data + done, constants);
  std::array<std::uint8_t, 2 * kBlock> rest{};
  const std::size_t left = size - done;
  if (left != 0) std::memcpy(rest.data(), data + done, left);
  rest[left] = 0x80;
  const std::size_t end = left + 9 <= kBlock ? kBlock : 2 * kBlock;
  const std::uint64_t bits = std::uint64_t{size} * 8;
  for (std::size_t i = 0; i < 8; ++i) {
    rest[end - 1 - i] = static_cast<std::uint8_t>(bits >> (8 * i));
  }
  for (std::size_t at = 0; at < end; at += kBlock) add_block(state, rest.data() + at, constants);
  std::string text;
  for (const std::uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15U];
  }
  return text;
}

}  // namespace mdprune::tensorrt
