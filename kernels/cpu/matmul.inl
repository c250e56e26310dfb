// y (m, n) = a (m, k) b (k, n), neither operand constant: attention and its like. Tiles of rows
// times two vectors of columns stay in registers over all of k; nothing is packed.

#pragma once

#include "parallel.inl"
#include "vec.h"

namespace mdprune::cpu::MDPRUNE_ISA {

constexpr std::size_t kMatMulRows = Vec::kRegisters / 4;
constexpr std::size_t kMatMulColumns = 2 * Vec::kLanes;

template <std::size_t rows>
inline void matmul_tile(std::size_t k, std::size_t n, std::size_t columns, const float* a,
                        const float* b, float* y) {
  const std::size_t left = columns < Vec::kLanes ? columns : Vec::kLanes;
  const std::size_t right = columns - left;
  Vec sums[rows][2];
  for (auto& row : sums) row[0] = row[1] = Vec::zero();
  for (std::size_t r = 0; r < k; ++r) {
    Vec first;
    Vec second;
    if (columns == kMatMulColumns) {
      first = Vec::load(b + r * n);
      second = Vec::load(b + r * n + Vec::kLanes);
    } else {
      first = Vec::load(b + r * n, left);
      second = right != 0 ? Vec::load(b + r * n + Vec::kLanes, right) : Vec::zero();
    }
    for (std::size_t i = 0; i < rows; ++i) {
      const Vec value = Vec::all(a[i * k + r]);
      sums[i][0] = fma(value, first, sums[i][0]);
      sums[i][1] = fma(value, second, sums[i][1]);
    }
  }
  for (std::size_t i = 0; i < rows; ++i) {
    sums[i][0].store(y + i * n, left);
    if (right != 0) sums[i][1].store(y + i * n + Vec::kLanes, right);
  }
}

inline void matmul(std::size_t m, std::size_t k, std::size_t n, const float* a, const float* b,
                   float* y, const Parallel& parallel) {
  const std::size_t row_tiles = (m + kMatMulRows - 1) / kMatMulRows;
  const std::size_t column_tiles = (n + kMatMulColumns - 1) / kMatMulColumns;
  // Row tiles run fastest: they share the columns of b.
  for_ranges(parallel, row_tiles * column_tiles, kMatMulRows * k * 2,
             [&](std::size_t begin, std::size_t end) {
               for (std::size_t tile = begin; tile < end; ++tile) {
                 const std::size_t i = tile % row_tiles * kMatMulRows;
                 const std::size_t j = tile / row_tiles * kMatMulColumns;
                 const std::size_t columns = n - j < kMatMulColumns ? n - j : kMatMulColumns;
                 if (m - i >= kMatMulRows) {
                   matmul_tile<kMatMulRows>(k, n, columns, a + i * k, b + j, y + i * n + j);
                   continue;
                 }
                 for (std::size_t row = i; row < m; ++row) {
                   matmul_tile<1>(k, n, columns, a + row * k, b + j, y + row * n + j);
                 }
               }
             });
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
