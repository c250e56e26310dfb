// Element by element: affine, unary, binary, select.

#pragma once

#include <math.h>

#include "activation.inl"
#include "parallel.inl"

namespace mdprune::cpu::MDPRUNE_ISA {

// f(i, lanes) for the vectors of [begin, end); only the last one may be short.
template <typename F>
inline void for_each_vector(std::size_t begin, std::size_t end, const F& f) {
  std::size_t i = begin;
  for (; i + Vec::kLanes <= end; i += Vec::kLanes) f(i, Vec::kLanes);
  if (i < end) f(i, end - i);
}

inline void affine(std::size_t rows, std::size_t n_in, std::size_t n, const float* x, float* y,
                   const std::int32_t* index, const float* scale, const float* shift,
                   Activation activation, const Parallel& parallel) {
  with_activation(activation, [&](const auto& activate) {
    for_ranges(parallel, rows, n, [&](std::size_t begin, std::size_t end) {
      for (std::size_t row = begin; row < end; ++row) {
        const float* from = x + row * n_in;
        float* to = y + row * n;
        for_each_vector(0, n, [&](std::size_t c, std::size_t lanes) {
          Vec v;
          if (index != nullptr) {
            float values[Vec::kLanes] = {};
            for (std::size_t i = 0; i < lanes; ++i) values[i] = from[index[c + i]];
            v = Vec::load(values);
          } else {
            v = Vec::load(from + c, lanes);
          }
          if (scale != nullptr) v = v * Vec::load(scale + c, lanes);
          if (shift != nullptr) v = v + Vec::load(shift + c, lanes);
          activate(v).store(to + c, lanes);
        });
      }
    });
  });
}

inline void unary(std::size_t n, const float* x, float* y, Activation activation,
                  const Parallel& parallel) {
  with_activation(activation, [&](const auto& activate) {
    for_ranges(parallel, n, 1, [&](std::size_t begin, std::size_t end) {
      for_each_vector(begin, end, [&](std::size_t i, std::size_t lanes) {
        activate(Vec::load(x + i, lanes)).store(y + i, lanes);
      });
    });
  });
}

template <typename F>
inline Vec each_lane(Vec a, Vec b, F f) {
  float x[Vec::kLanes];
  float y[Vec::kLanes];
  a.store(x);
  b.store(y);
  for (std::size_t i = 0; i < Vec::kLanes; ++i) x[i] = f(x[i], y[i]);
  return Vec::load(x);
}

inline float modulo(float a, float b) {
  const float remainder = fmodf(a, b);
  return remainder != 0.0F && (remainder < 0.0F) != (b < 0.0F) ? remainder + b : remainder;
}

inline Vec combine(std::uint32_t kind, Vec a, Vec b) {
  switch (kind) {
    case kAdd: return a + b;
    case kSubtract: return a - b;
    case kMultiply: return a * b;
    case kDivide: return a / b;
    case kPower: return each_lane(a, b, [](float x, float y) { return powf(x, y); });
    case kMinimum: return min(a, b);
    case kMaximum: return max(a, b);
    case kPRelu: return where_less(a, Vec::zero(), a * b, a);
    case kEqual: return each_lane(a, b, [](float x, float y) { return x == y ? 1.0F : 0.0F; });
    case kLess: return each_lane(a, b, [](float x, float y) { return x < y ? 1.0F : 0.0F; });
    case kLessOrEqual:
      return each_lane(a, b, [](float x, float y) { return x <= y ? 1.0F : 0.0F; });
    case kGreater: return each_lane(a, b, [](float x, float y) { return x > y ? 1.0F : 0.0F; });
    case kGreaterOrEqual:
      return each_lane(a, b, [](float x, float y) { return x >= y ? 1.0F : 0.0F; });
    default: return each_lane(a, b, modulo);
  }
}

// An operand along the last axis: its elements one after the other, or one for all.
struct Operand {
  const float* data;
  bool varies;
  Vec load(std::size_t i, std::size_t lanes) const {
    return varies ? Vec::load(data + i, lanes) : Vec::all(*data);
  }
};

// Walks over rows (all axes but the last) and keeps the offset of each operand.
template <std::size_t operands>
struct Rows {
  std::size_t rank;  // at least 1
  const std::size_t* size;
  const std::size_t* strides[operands];

  std::size_t count() const {
    std::size_t rows = 1;
    for (std::size_t axis = 0; axis + 1 < rank; ++axis) rows *= size[axis];
    return rows;
  }
  void offsets(std::size_t row, std::size_t* offset) const {
    for (std::size_t k = 0; k < operands; ++k) offset[k] = 0;
    for (std::size_t axis = rank - 1; axis-- > 0; row /= size[axis]) {
      for (std::size_t k = 0; k < operands; ++k) offset[k] += row % size[axis] * strides[k][axis];
    }
  }
};

// f(begin, end, offsets, row) for pieces of rows; one row alone is split inside.
template <std::size_t operands, typename F>
inline void for_row_pieces(const Parallel& parallel, const Rows<operands>& rows, const F& f) {
  const std::size_t n = rows.size[rows.rank - 1];
  const std::size_t count = rows.count();
  if (count == 1) {
    const std::size_t offset[operands] = {};
    for_ranges(parallel, n, 1,
               [&](std::size_t begin, std::size_t end) { f(begin, end, offset, 0); });
    return;
  }
  for_ranges(parallel, count, n, [&](std::size_t first, std::size_t last) {
    for (std::size_t row = first; row < last; ++row) {
      std::size_t offset[operands];
      rows.offsets(row, offset);
      f(0, n, offset, row);
    }
  });
}

template <typename Combine, typename Activate>
inline void binary_rows(std::size_t rank, const std::size_t* size, const std::size_t* a_stride,
                        const std::size_t* b_stride, const float* a, const float* b, float* y,
                        const Combine& combine, const Activate& activate,
                        const Parallel& parallel) {
  const std::size_t n = size[rank - 1];
  for_row_pieces<2>(
      parallel, {rank, size, {a_stride, b_stride}},
      [&](std::size_t begin, std::size_t end, const std::size_t* offset, std::size_t row) {
        const Operand first{a + offset[0], a_stride[rank - 1] != 0};
        const Operand second{b + offset[1], b_stride[rank - 1] != 0};
        for_each_vector(begin, end, [&](std::size_t i, std::size_t lanes) {
          const Vec v = combine(first.load(i, lanes), second.load(i, lanes));
          activate(v).store(y + row * n + i, lanes);
        });
      });
}

inline void binary(std::uint32_t kind, std::size_t rank, const std::size_t* size,
                   const std::size_t* a_stride, const std::size_t* b_stride, const float* a,
                   const float* b, float* y, Activation activation, const Parallel& parallel) {
  const auto rows = [&](const auto& combine, const auto& activate) {
    binary_rows(rank, size, a_stride, b_stride, a, b, y, combine, activate, parallel);
  };
  if (kind == kAdd) {
    with_activation(activation, [&](const auto& activate) {
      rows([](Vec v, Vec w) { return v + w; }, activate);
    });
  } else if (kind == kMultiply && activation.code == kIdentity) {
    rows([](Vec v, Vec w) { return v * w; }, Identity{});
  } else {
    rows([&](Vec v, Vec w) { return combine(kind, v, w); }, AnyActivation{activation});
  }
}

inline void select(std::size_t rank, const std::size_t* size, const std::size_t* c_stride,
                   const std::size_t* a_stride, const std::size_t* b_stride, const float* c,
                   const float* a, const float* b, float* y, const Parallel& parallel) {
  const std::size_t last = rank - 1;
  for_row_pieces<3>(
      parallel, {rank, size, {c_stride, a_stride, b_stride}},
      [&](std::size_t begin, std::size_t end, const std::size_t* offset, std::size_t row) {
        for (std::size_t i = begin; i < end; ++i) {
          const bool first = c[offset[0] + i * c_stride[last]] != 0.0F;
          y[row * size[last] + i] =
              first ? a[offset[1] + i * a_stride[last]] : b[offset[2] + i * b_stride[last]];
        }
      });
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
