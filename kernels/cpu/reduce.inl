// Reductions over the middle of three axes [outer, n, inner]: reduce, softmax, normalize.
//
// Where inner is 1 the lanes of a vector are neighbours along n, otherwise neighbours along inner.
// Sums are taken in blocks, so that rounding grows with the block's length and the number of
// blocks, not with n.

#pragma once

#include <math.h>

#include "activation.inl"
#include "elementwise.inl"
#include "parallel.inl"

namespace mdprune::cpu::MDPRUNE_ISA {

constexpr std::size_t kSumBlock = 64;

struct Add {
  static Vec start() { return Vec::zero(); }
  static Vec combine(Vec a, Vec b) { return a + b; }
};
struct Multiply {
  static Vec start() { return Vec::all(1.0F); }
  static Vec combine(Vec a, Vec b) { return a * b; }
};
struct Maximum {
  static Vec start() { return Vec::all(-HUGE_VALF); }
  static Vec combine(Vec a, Vec b) { return max(a, b); }
};
struct Minimum {
  static Vec start() { return Vec::all(HUGE_VALF); }
  static Vec combine(Vec a, Vec b) { return min(a, b); }
};

// Folds map(x) over n rows of `lanes` columns; rows are `stride` floats apart.
template <typename Operation, typename Map>
inline Vec fold_columns(std::size_t n, std::size_t stride, std::size_t lanes, const float* x,
                        const Map& map) {
  Vec total = Operation::start();
  for (std::size_t begin = 0; begin < n; begin += kSumBlock) {
    const std::size_t end = n - begin < kSumBlock ? n : begin + kSumBlock;
    Vec block = Operation::start();
    for (std::size_t i = begin; i < end; ++i) {
      block = Operation::combine(block, map(Vec::load(x + i * stride, lanes)));
    }
    total = Operation::combine(total, block);
  }
  return total;
}

template <typename Operation>
inline float fold_lanes(Vec v) {
  float lanes[Vec::kLanes];
  v.store(lanes);
  for (std::size_t half = Vec::kLanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) {
      const Vec pair = Operation::combine(Vec::all(lanes[i]), Vec::all(lanes[i + half]));
      pair.store(lanes + i, 1);
    }
  }
  return lanes[0];
}

// Folds map(x) over n neighbours.
template <typename Operation, typename Map>
inline float fold_row(std::size_t n, const float* x, const Map& map) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const Vec whole = fold_columns<Operation>(n / kLanes, kLanes, kLanes, x, map);
  Vec rest = Operation::start();
  for (std::size_t i = n / kLanes * kLanes; i < n; ++i) {
    rest = Operation::combine(rest, map(Vec::all(x[i])));
  }
  const Vec total = Vec::all(fold_lanes<Operation>(whole));
  float result[kLanes];
  Operation::combine(total, rest).store(result);
  return result[0];
}

// f(offset in x, offset in the result, lanes) for the columns of [outer, n, inner].
template <typename F>
inline void for_each_column(std::size_t outer, std::size_t n, std::size_t inner,
                            const Parallel& parallel, const F& f) {
  const std::size_t vectors = (inner + Vec::kLanes - 1) / Vec::kLanes;
  for_ranges(parallel, outer * vectors, n * Vec::kLanes, [&](std::size_t begin, std::size_t end) {
    for (std::size_t v = begin; v < end; ++v) {
      const std::size_t o = v / vectors;
      const std::size_t i = v % vectors * Vec::kLanes;
      f(o * n * inner + i, o * inner + i, inner - i < Vec::kLanes ? inner - i : Vec::kLanes);
    }
  });
}

// y = finish(fold of map(x)).
template <typename Operation, typename Map, typename Finish>
inline void fold(std::size_t outer, std::size_t n, std::size_t inner, const float* x, float* y,
                 const Parallel& parallel, const Map& map, const Finish& finish) {
  if (inner == 1) {
    for_ranges(parallel, outer, n, [&](std::size_t begin, std::size_t end) {
      for (std::size_t o = begin; o < end; ++o) {
        finish(Vec::all(fold_row<Operation>(n, x + o * n, map))).store(y + o, 1);
      }
    });
    return;
  }
  for_each_column(outer, n, inner, parallel,
                  [&](std::size_t from, std::size_t to, std::size_t lanes) {
                    const Vec v = fold_columns<Operation>(n, inner, lanes, x + from, map);
                    finish(v).store(y + to, lanes);
                  });
}

inline Vec log(Vec x) {
  return each_lane(x, [](float v) { return logf(v); });
}

// What to subtract before exponentials are summed: 0 where it is infinite.
inline Vec finite_or_zero(Vec x) {
  return each_lane(x, [](float v) { return v - v == 0.0F ? v : 0.0F; });
}

inline void log_sum_exp(std::size_t outer, std::size_t n, std::size_t inner, const float* x,
                        float* y, const Parallel& parallel) {
  for_ranges(parallel, outer * inner, n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t k = begin; k < end; ++k) {
      const float* column = x + k / inner * n * inner + k % inner;
      float largest = -HUGE_VALF;
      for (std::size_t i = 0; i < n; ++i) largest = fmaxf(largest, column[i * inner]);
      if (largest - largest != 0.0F) largest = 0.0F;
      double sum = 0.0;
      for (std::size_t i = 0; i < n; ++i) {
        sum += static_cast<double>(expf(column[i * inner] - largest));
      }
      y[k] = largest + static_cast<float>(::log(sum));
    }
  });
}

inline void reduce(std::uint32_t kind, std::size_t outer, std::size_t n, std::size_t inner,
                   const float* x, float* y, const Parallel& parallel) {
  const auto same = [](Vec v) { return v; };
  const auto magnitude = [](Vec v) { return max(-v, v); };
  const auto square = [](Vec v) { return v * v; };
  const auto root = [](Vec v) { return each_lane(v, [](float s) { return sqrtf(s); }); };
  const auto logarithm = [](Vec v) { return log(v); };
  const Vec count = Vec::all(static_cast<float>(n));
  const auto divide = [&](Vec v) { return v / count; };
  switch (kind) {
    case kMean: return fold<Add>(outer, n, inner, x, y, parallel, same, divide);
    case kSum: return fold<Add>(outer, n, inner, x, y, parallel, same, same);
    case kMax: return fold<Maximum>(outer, n, inner, x, y, parallel, same, same);
    case kMin: return fold<Minimum>(outer, n, inner, x, y, parallel, same, same);
    case kProduct: return fold<Multiply>(outer, n, inner, x, y, parallel, same, same);
    case kL1: return fold<Add>(outer, n, inner, x, y, parallel, magnitude, same);
    case kL2: return fold<Add>(outer, n, inner, x, y, parallel, square, root);
    case kSumOfSquares: return fold<Add>(outer, n, inner, x, y, parallel, square, same);
    case kLogOfSum: return fold<Add>(outer, n, inner, x, y, parallel, same, logarithm);
    default: return log_sum_exp(outer, n, inner, x, y, parallel);
  }
}

// softmax = exp(x - largest) / sum; its logarithm is x - largest - log(sum).
inline void softmax_row(bool log, std::size_t n, const float* x, float* y) {
  const auto same = [](Vec v) { return v; };
  const Vec largest = Vec::all(fold_row<Maximum>(n, x, same));
  if (log) {
    const auto shifted = [&](Vec v) { return exp(v - largest); };
    const Vec subtract = Vec::all(logf(fold_row<Add>(n, x, shifted)));
    for_each_vector(0, n, [&](std::size_t i, std::size_t lanes) {
      (Vec::load(x + i, lanes) - largest - subtract).store(y + i, lanes);
    });
    return;
  }
  for_each_vector(0, n, [&](std::size_t i, std::size_t lanes) {
    exp(Vec::load(x + i, lanes) - largest).store(y + i, lanes);
  });
  const Vec factor = Vec::all(1.0F / fold_row<Add>(n, y, same));
  for_each_vector(0, n, [&](std::size_t i, std::size_t lanes) {
    (Vec::load(y + i, lanes) * factor).store(y + i, lanes);
  });
}

inline void softmax_column(bool log_of_it, std::size_t n, std::size_t inner, std::size_t lanes,
                           const float* x, float* y) {
  const auto same = [](Vec v) { return v; };
  const Vec largest = fold_columns<Maximum>(n, inner, lanes, x, same);
  const auto shifted = [&](Vec v) { return exp(v - largest); };
  const Vec sum = fold_columns<Add>(n, inner, lanes, x, shifted);
  const Vec factor = Vec::all(1.0F) / sum;
  const Vec subtract = log_of_it ? log(sum) : sum;
  for (std::size_t i = 0; i < n; ++i) {
    const Vec v = Vec::load(x + i * inner, lanes) - largest;
    (log_of_it ? v - subtract : exp(v) * factor).store(y + i * inner, lanes);
  }
}

inline void softmax(bool log, std::size_t outer, std::size_t n, std::size_t inner, const float* x,
                    float* y, const Parallel& parallel) {
  if (inner == 1) {
    for_ranges(parallel, outer, 4 * n, [&](std::size_t begin, std::size_t end) {
      for (std::size_t o = begin; o < end; ++o) softmax_row(log, n, x + o * n, y + o * n);
    });
    return;
  }
  for_each_column(outer, n, inner, parallel, [&](std::size_t at, std::size_t, std::size_t lanes) {
    softmax_column(log, n, inner, lanes, x + at, y + at);
  });
}

// (x - mean) / sqrt(variance + epsilon), the variance taken about the mean.
inline void normalize(float epsilon, std::size_t outer, std::size_t n, std::size_t inner,
                      const float* x, float* y, const Parallel& parallel) {
  const Vec count = Vec::all(static_cast<float>(n));
  const auto factor = [&](Vec squares) {
    const Vec root =
        each_lane(squares / count + Vec::all(epsilon), [](float v) { return sqrtf(v); });
    return Vec::all(1.0F) / root;
  };
  const auto same = [](Vec v) { return v; };
  if (inner == 1) {
    for_ranges(parallel, outer, 4 * n, [&](std::size_t begin, std::size_t end) {
      for (std::size_t o = begin; o < end; ++o) {
        const float* from = x + o * n;
        float* to = y + o * n;
        const Vec mean = Vec::all(fold_row<Add>(n, from, same)) / count;
        const auto square = [&](Vec v) { return (v - mean) * (v - mean); };
        const Vec scale = factor(Vec::all(fold_row<Add>(n, from, square)));
        for_each_vector(0, n, [&](std::size_t i, std::size_t lanes) {
          ((Vec::load(from + i, lanes) - mean) * scale).store(to + i, lanes);
        });
      }
    });
    return;
  }
  for_each_column(outer, n, inner, parallel, [&](std::size_t at, std::size_t, std::size_t lanes) {
    const Vec mean = fold_columns<Add>(n, inner, lanes, x + at, same) / count;
    const auto square = [&](Vec v) { return (v - mean) * (v - mean); };
    const Vec scale = factor(fold_columns<Add>(n, inner, lanes, x + at, square));
    for (std::size_t i = 0; i < n; ++i) {
      const Vec v = Vec::load(x + at + i * inner, lanes);
      ((v - mean) * scale).store(y + at + i * inner, lanes);
    }
  });
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
