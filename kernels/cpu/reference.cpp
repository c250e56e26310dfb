// The kernels of docs/native-format.md as plainly as they can be written: one loop per index, sums
// in double, one thread. Tests compare the fast ones with these; contexts may ask for them by name.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels.h"
#include "tables.h"

namespace mdprune::cpu::reference {
namespace {

double activate(double x, const Activation& activation) {
  const double a = activation.a;
  const double b = activation.b;
  const auto elu = [](double v, double alpha, double inside) {
    return v > 0 ? v : alpha * std::expm1(v * inside);
  };
  const auto softplus = [](double v) {
    return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v)));
  };
  switch (activation.code) {
    case kRelu: return std::max(0.0, x);
    case kClip: return std::min(b, std::max(a, x));
    case kLeakyRelu: return x < 0 ? a * x : x;
    case kSigmoid: return 1 / (1 + std::exp(-x));
    case kSilu: return x / (1 + std::exp(-x));
    case kHardSigmoid: return std::max(0.0, std::min(1.0, a * x + b));
    case kHardSwish: return x * std::max(0.0, std::min(1.0, x / 6 + 0.5));
    case kTanh: return std::tanh(x);
    case kGelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case kElu: return elu(x, a, 1);
    case kSoftplus: return softplus(x);
    case kMish: return x * std::tanh(softplus(x));
    case kExp: return std::exp(x);
    case kLog: return std::log(x);
    case kSqrt: return std::sqrt(x);
    case kReciprocal: return 1 / x;
    case kNegate: return -x;
    case kAbs: return std::abs(x);
    case kErf: return std::erf(x);
    case kSign: return x > 0 ? 1 : x < 0 ? -1 : x;
    case kFloor: return std::floor(x);
    case kCeil: return std::ceil(x);
    case kRound: return std::nearbyint(x);
    case kSin: return std::sin(x);
    case kCos: return std::cos(x);
    case kSoftsign: return x / (1 + std::abs(x));
    case kSquare: return x * x;
    case kSelu: return b * elu(x, a, 1);
    case kNot: return x == 0 ? 1 : 0;
    case kCelu: return elu(x, a, 1 / a);
    case kThresholdedRelu: return x > a ? x : 0;
    default: return x;
  }
}

std::size_t volume(const std::size_t* sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// The position in the input of tap t seen from output position p, both row-major; false if outside.
bool input_position(const Window& w, std::size_t p, std::size_t t, std::size_t* position) {
  std::size_t step = 1;
  *position = 0;
  for (int axis = 2; axis >= 0; --axis) {
    const std::size_t at =
        p % w.output[axis] * w.stride[axis] + t % w.kernel[axis] * w.dilation[axis];
    p /= w.output[axis];
    t /= w.kernel[axis];
    if (at < w.pad[axis] || at - w.pad[axis] >= w.input[axis]) return false;
    *position += (at - w.pad[axis]) * step;
    step *= w.input[axis];
  }
  return true;
}

// The stored weight of every (filter, reduction channel, tap), dense.
std::vector<float> dense_weight(const Convolution& c) {
  const std::size_t taps = volume(c.window.kernel);
  std::vector<float> dense(c.filters * c.reduction * taps);
  const auto at = [&](std::size_t f, std::size_t r, std::size_t t) -> float& {
    return dense[(f * c.reduction + r) * taps + t];
  };
  if (c.packed != nullptr) {
    const std::size_t per_group = c.filters / c.groups;
    const std::size_t blocks = (per_group + 15) / 16;
    for (std::size_t f = 0; f < c.filters; ++f) {
      const std::size_t inside = f % per_group;
      // Panels of at most four blocks, the first ones a block wider where they differ.
      const std::size_t panels = (blocks + 3) / 4;
      std::size_t first = 0, panel = 0, width = (blocks + panels - 1) / panels;
      while (inside / 16 >= first + width) {
        first += width;
        ++panel;
        width = blocks / panels + (panel < blocks % panels ? 1 : 0);
      }
      const float* const rows =
          c.packed + (f / per_group * blocks + first) * 16 * taps * c.reduction;
      for (std::size_t t = 0; t < taps; ++t) {
        for (std::size_t r = 0; r < c.reduction; ++r) {
          at(f, r, t) = rows[(t * c.reduction + r) * width * 16 + inside - first * 16];
        }
      }
    }
    return dense;
  }
  const auto is_used = [](const std::uint32_t* bits, std::size_t i) {
    return bits == nullptr || (bits[i / 32] >> (i % 32) & 1U) != 0;
  };
  std::size_t channel = 0;
  for (std::size_t s = 0; s < c.slab_count; ++s) {
    const Slab& slab = c.slabs[s];
    if (slab.joins) channel -= slab.used_rows;
    for (std::size_t r = 0; r < slab.rows; ++r) {
      if (!is_used(slab.row_bits, r)) continue;
      std::size_t f = 0;
      for (std::size_t j = 0; j < slab.filters; ++j) {
        if (!is_used(slab.bits, j)) continue;
        while (!is_used(slab.outputs, f)) ++f;
        for (std::size_t t = 0; t < taps; ++t) {
          at(f, channel, t) = slab.data[(t * slab.rows + r) * slab.filters + j];
        }
        ++f;
      }
      ++channel;
    }
  }
  return dense;
}

double scaled(double v, const float* scale, const float* shift, std::size_t f) {
  return v * (scale != nullptr ? scale[f] : 1.0F) + (shift != nullptr ? shift[f] : 0.0F);
}

void convolution(const Convolution& c, const Parallel&) {
  const std::size_t taps = volume(c.window.kernel);
  const std::size_t in = volume(c.window.input);
  const std::size_t out = volume(c.window.output);
  const std::vector<float> weight = dense_weight(c);
  Window adjoint = c.window;  // of a transposed one: who reads whom is swapped
  if (c.transposed) std::swap(adjoint.input, adjoint.output);
  std::vector<double> sums(out * c.filters);
  for (std::size_t n = 0; n < c.batch; ++n) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::size_t p = 0; p < (c.transposed ? in : out); ++p) {
      for (std::size_t t = 0; t < taps; ++t) {
        std::size_t q = 0;
        if (!input_position(adjoint, p, t, &q)) continue;
        const float* x = c.x + (n * in + (c.transposed ? p : q)) * c.in_channels;
        double* sum = sums.data() + (c.transposed ? q : p) * c.filters;
        for (std::size_t f = 0; f < c.filters; ++f) {
          const std::size_t group = f / (c.filters / c.groups);
          for (std::size_t r = 0; r < c.reduction; ++r) {
            const std::size_t k = group * c.reduction + r;
            const std::size_t channel = c.index != nullptr ? std::size_t(c.index[k]) : k;
            sum[f] += double(x[channel]) * weight[(f * c.reduction + r) * taps + t];
          }
        }
      }
    }
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const std::size_t f = i % c.filters;
      const std::size_t o = n * sums.size() + i;
      double v = scaled(sums[i], c.scale, c.shift, f);
      if (c.residual_index != nullptr) {
        const std::size_t pixel = n * out + i / c.filters;
        v += c.residual[pixel * c.residual_channels + std::size_t(c.residual_index[f])];
      } else if (c.residual != nullptr) {
        v += c.residual[o];
      }
      v = activate(v, c.activation);
      c.y[o] = float(v);
      if (c.y2 != nullptr) {
        c.y2[o] = float(activate(scaled(v, c.scale2, c.shift2, f), c.activation2));
      }
    }
  }
}

void depthwise(const Depthwise& d, const Parallel&) {
  const std::size_t in = volume(d.window.input);
  const std::size_t out = volume(d.window.output);
  for (std::size_t n = 0; n < d.batch; ++n) {
    for (std::size_t p = 0; p < out; ++p) {
      for (std::size_t f = 0; f < d.filters; ++f) {
        double sum = 0;
        for (std::size_t t = 0; t < volume(d.window.kernel); ++t) {
          std::size_t q = 0;
          if (!input_position(d.window, p, t, &q)) continue;
          const std::size_t channel = f / (d.filters / d.in_channels);
          sum += double(d.x[(n * in + q) * d.in_channels + channel]) * d.weight[t * d.filters + f];
        }
        const std::size_t o = (n * out + p) * d.filters + f;
        double v = scaled(sum, d.scale, d.shift, f);
        if (d.residual != nullptr) v += d.residual[o];
        d.y[o] = float(activate(v, d.activation));
      }
    }
  }
}

void pool(const Pool& d, const Parallel&) {
  const std::size_t in = volume(d.window.input);
  const std::size_t out = volume(d.window.output);
  const std::size_t taps = volume(d.window.kernel);
  for (std::size_t n = 0; n < d.batch; ++n) {
    for (std::size_t p = 0; p < out; ++p) {
      for (std::size_t c = 0; c < d.channels; ++c) {
        double sum = 0;
        double maximum = -HUGE_VAL;
        std::size_t inside = 0;
        for (std::size_t t = 0; t < taps; ++t) {
          std::size_t q = 0;
          if (!input_position(d.window, p, t, &q)) continue;
          const double x = d.x[(n * in + q) * d.channels + c];
          maximum = std::max(maximum, x);
          sum += x;
          ++inside;
        }
        const double mean = sum / double(d.kind == 2 ? taps : std::max<std::size_t>(1, inside));
        d.y[(n * out + p) * d.channels + c] = float(d.kind == 0 ? maximum : mean);
      }
    }
  }
}

void affine(std::size_t rows, std::size_t n_in, std::size_t n, const float* x, float* y,
            const std::int32_t* index, const float* scale, const float* shift,
            Activation activation, const Parallel&) {
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t c = 0; c < n; ++c) {
      const double v = x[row * n_in + (index != nullptr ? std::size_t(index[c]) : c)];
      y[row * n + c] = float(activate(scaled(v, scale, shift, c), activation));
    }
  }
}

void unary(std::size_t n, const float* x, float* y, Activation activation, const Parallel&) {
  for (std::size_t i = 0; i < n; ++i) y[i] = float(activate(x[i], activation));
}

double combine(std::uint32_t kind, double a, double b) {
  switch (kind) {
    case kAdd: return a + b;
    case kSubtract: return a - b;
    case kMultiply: return a * b;
    case kDivide: return a / b;
    case kPower: return std::pow(a, b);
    case kMinimum: return std::min(a, b);
    case kMaximum: return std::max(a, b);
    case kPRelu: return a < 0 ? a * b : a;
    case kEqual: return a == b;
    case kLess: return a < b;
    case kLessOrEqual: return a <= b;
    case kGreater: return a > b;
    case kGreaterOrEqual: return a >= b;
    default: {
      const double remainder = std::fmod(a, b);
      return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
    }
  }
}

// Calls f(i, offsets) for the i-th index vector below `size`, offsets by each of the strides.
template <std::size_t operands, typename Stride, typename F>
void for_each_index(std::size_t rank, const std::size_t* size,
                    const Stride* const (&strides)[operands], F f) {
  std::size_t count = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) count *= size[axis];
  for (std::size_t i = 0; i < count; ++i) {
    Stride offsets[operands] = {};
    std::size_t rest = i;
    for (std::size_t axis = rank; axis-- > 0; rest /= size[axis]) {
      for (std::size_t k = 0; k < operands; ++k) {
        offsets[k] += static_cast<Stride>(rest % size[axis]) * strides[k][axis];
      }
    }
    f(i, offsets);
  }
}

void binary(std::uint32_t kind, std::size_t rank, const std::size_t* size,
            const std::size_t* a_stride, const std::size_t* b_stride, const float* a,
            const float* b, float* y, Activation activation, const Parallel&) {
  for_each_index<2, std::size_t>(rank, size, {a_stride, b_stride}, [&](std::size_t i, auto& at) {
    y[i] = float(activate(combine(kind, a[at[0]], b[at[1]]), activation));
  });
}

void select(std::size_t rank, const std::size_t* size, const std::size_t* c_stride,
            const std::size_t* a_stride, const std::size_t* b_stride, const float* c,
            const float* a, const float* b, float* y, const Parallel&) {
  for_each_index<3, std::size_t>(
      rank, size, {c_stride, a_stride, b_stride},
      [&](std::size_t i, auto& at) { y[i] = c[at[0]] != 0 ? a[at[1]] : b[at[2]]; });
}

double reduce_one(std::uint32_t kind, std::size_t n, std::size_t stride, const float* x) {
  double sum = 0, absolute = 0, squares = 0, product = 1, exponentials = 0;
  double maximum = -HUGE_VAL, minimum = HUGE_VAL;
  for (std::size_t i = 0; i < n; ++i) {
    const double v = x[i * stride];
    sum += v;
    absolute += std::abs(v);
    squares += v * v;
    product *= v;
    maximum = std::max(maximum, v);
    minimum = std::min(minimum, v);
  }
  for (std::size_t i = 0; i < n; ++i) exponentials += std::exp(x[i * stride] - maximum);
  switch (kind) {
    case kMean: return sum / double(n);
    case kSum: return sum;
    case kMax: return maximum;
    case kMin: return minimum;
    case kProduct: return product;
    case kL1: return absolute;
    case kL2: return std::sqrt(squares);
    case kSumOfSquares: return squares;
    case kLogOfSum: return std::log(sum);
    default: return std::log(exponentials) + maximum;
  }
}

void reduce(std::uint32_t kind, std::size_t outer, std::size_t n, std::size_t inner, const float* x,
            float* y, const Parallel&) {
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t i = 0; i < inner; ++i) {
      y[o * inner + i] = float(reduce_one(kind, n, inner, x + o * n * inner + i));
    }
  }
}

void softmax(bool log, std::size_t outer, std::size_t n, std::size_t inner, const float* x,
             float* y, const Parallel&) {
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t i = 0; i < inner; ++i) {
      const std::size_t first = o * n * inner + i;
      const double total = reduce_one(kLogOfSumOfExponentials, n, inner, x + first);
      for (std::size_t j = 0; j < n; ++j) {
        const double v = x[first + j * inner] - total;
        y[first + j * inner] = float(log ? v : std::exp(v));
      }
    }
  }
}

void normalize(float epsilon, std::size_t outer, std::size_t n, std::size_t inner, const float* x,
               float* y, const Parallel&) {
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t i = 0; i < inner; ++i) {
      const std::size_t first = o * n * inner + i;
      const double mean = reduce_one(kMean, n, inner, x + first);
      double variance = 0;
      for (std::size_t j = 0; j < n; ++j) {
        variance += (x[first + j * inner] - mean) * (x[first + j * inner] - mean) / double(n);
      }
      for (std::size_t j = 0; j < n; ++j) {
        y[first + j * inner] =
            float((x[first + j * inner] - mean) / std::sqrt(variance + double(epsilon)));
      }
    }
  }
}

void matmul(std::size_t m, std::size_t k, std::size_t n, const float* a, const float* b, float* y,
            const Parallel&) {
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::size_t r = 0; r < k; ++r) sum += double(a[i * k + r]) * b[r * n + j];
      y[i * n + j] = float(sum);
    }
  }
}

void move(std::size_t rank, const std::size_t* size, const std::ptrdiff_t* x_stride,
          const std::ptrdiff_t* y_stride, const float* x, float* y, const Parallel&) {
  for_each_index<2, std::ptrdiff_t>(rank, size, {x_stride, y_stride},
                                    [&](std::size_t, auto& at) { y[at[1]] = x[at[0]]; });
}

void gather(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
            const std::int32_t* index, const float* x, float* y, const Parallel&) {
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t j = 0; j < count; ++j) {
      for (std::size_t i = 0; i < inner; ++i) {
        y[(o * count + j) * inner + i] = x[(o * n + std::size_t(index[j])) * inner + i];
      }
    }
  }
}

void interpolate(std::size_t outer, std::size_t n, std::size_t inner, std::size_t count,
                 std::size_t taps, const std::int32_t* index, const float* weight, const float* x,
                 float* y, const Parallel&) {
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t j = 0; j < count; ++j) {
      for (std::size_t i = 0; i < inner; ++i) {
        double sum = 0;
        for (std::size_t t = 0; t < taps; ++t) {
          const std::size_t row = o * n + std::size_t(index[j * taps + t]);
          sum += double(weight[j * taps + t]) * x[row * inner + i];
        }
        y[(o * count + j) * inner + i] = float(sum);
      }
    }
  }
}

}  // namespace

const Kernels kKernels = {"reference", convolution, depthwise, pool,   affine,
                          unary,       binary,      select,    reduce, softmax,
                          normalize,   matmul,      move,      gather, interpolate};

}  // namespace mdprune::cpu::reference
