// Convolution: every operand is checked here, the kernel trusts them.

#include <cstring>
#include <vector>

#include "window.h"

namespace mdprune {
namespace {

std::size_t count_bits(const std::uint32_t* words, std::size_t count) {
  std::size_t bits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::uint32_t word = words[i]; word != 0; word &= word - 1) ++bits;
  }
  return bits;
}

// Reads a bit set with one bit for each of `count`; null where all are used. `used` is how many.
const std::uint32_t* read_bits(Words& words, std::size_t count, std::size_t& used) {
  used = count;
  const Tensor* tensor = words.optional_integers();
  if (tensor == nullptr) return nullptr;
  const auto* bits = reinterpret_cast<const std::uint32_t*>(tensor->constant);
  require(tensor->elements == (count + 31) / 32, "a slab's bit set has the wrong length");
  require(count % 32 == 0 || bits[tensor->elements - 1] >> (count % 32) == 0,
          "a slab's bit set goes past its end");
  used = count_bits(bits, tensor->elements);
  return bits;
}

cpu::Slab read_slab(Words& words, std::size_t taps, std::size_t filters) {
  const Tensor& weight = words.constant();
  require(weight.rank == 3 && weight.sizes[0] == taps, "a slab is not (taps, rows, filters)");
  cpu::Slab slab{};
  slab.data = reinterpret_cast<const float*>(weight.constant);
  slab.rows = weight.sizes[1];
  slab.filters = weight.sizes[2];
  std::size_t used = 0, outputs = 0;
  slab.bits = read_bits(words, slab.filters, used);
  slab.row_bits = read_bits(words, slab.rows, slab.used_rows);
  slab.outputs = read_bits(words, filters, outputs);
  require(used == outputs, "a slab's used filters are not those of the output");
  require(slab.used_rows > 0, "no row of a slab is used");
  return slab;
}

// Tells slabs that complete each other from those that begin new rows.
class Completion {
 public:
  explicit Completion(std::size_t filters) : filters_(filters) {}

  // Takes the next slab, and sets whether it joins the one before.
  void take(cpu::Slab& slab) {
    if (slab.outputs == nullptr) {
      require(whole(), kIncomplete);
      return;
    }
    slab.joins = !whole();
    if (!slab.joins) {
      seen_.assign((filters_ + 31) / 32, 0);
      rows_ = slab.used_rows;
    }
    require(slab.used_rows == rows_, "slabs that complete each other have other rows");
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      require((seen_[i] & slab.outputs[i]) == 0, "slabs that complete each other overlap");
      seen_[i] |= slab.outputs[i];
    }
  }
  void finish() const { require(whole(), kIncomplete); }

 private:
  static constexpr const char* kIncomplete = "a slab lacks filters that no other one has";
  bool whole() const { return seen_.empty() || count_bits(seen_.data(), seen_.size()) == filters_; }

  std::size_t filters_, rows_ = 0;
  std::vector<std::uint32_t> seen_;
};

void read_weights(Words& words, Convolution& made, std::size_t taps) {
  cpu::Convolution& c = made.constant;
  const bool packed = words.below(2) == 1;
  c.stored_filters = words.next();
  require(c.stored_filters == c.filters || (c.groups == 1 && c.stored_filters < c.filters &&
                                            (c.stored_filters + 15) / 16 == (c.filters + 15) / 16),
          "the weights' filters are not the output's");
  const std::uint32_t count = words.next();
  require(c.filters % c.groups == 0, "the filters do not divide into the groups");
  if (packed) {
    require(count == 1, "a packed convolution has one weight");
    const Tensor& weight = words.constant();
    for (int set = 0; set < 3; ++set) {
      require(words.optional_integers() == nullptr, "a packed convolution has a bit set");
    }
    const std::size_t blocks = (c.filters / c.groups + 15) / 16;
    require(weight.rank == 5 && weight.sizes[0] == c.groups && weight.sizes[1] == blocks &&
                weight.sizes[2] == taps && weight.sizes[4] == 16,
            "a packed weight is not (groups, blocks, taps, rows, 16)");
    c.reduction = weight.sizes[3];
    c.packed = reinterpret_cast<const float*>(weight.constant);
    return;
  }
  require(c.groups == 1, "a convolution of slabs has groups");
  require(count >= 1, "a convolution has no weight");
  Completion completion(c.stored_filters);
  for (std::uint32_t k = 0; k < count; ++k) {
    cpu::Slab slab = read_slab(words, taps, c.stored_filters);
    completion.take(slab);
    if (!slab.joins) c.reduction += slab.used_rows;
    made.slabs.push_back(slab);
  }
  completion.finish();
  c.slabs = made.slabs.data();
  c.slab_count = made.slabs.size();
}

void read_residual(Words& words, Convolution& made, const Tensor& y, const Tensor* residual) {
  cpu::Convolution& c = made.constant;
  const Tensor* index = words.optional_integers();
  if (residual == nullptr) {
    require(index == nullptr, "channels of a residual are selected, and there is none");
    return;
  }
  c.residual_channels = residual->last();
  require(residual->elements / c.residual_channels == y.elements / c.filters,
          "the residual has other positions than the output");
  if (index != nullptr) {
    c.residual_index = checked_index(*index, c.filters, c.residual_channels);
  } else {
    require(c.residual_channels == c.filters, "the residual has other channels than the output");
  }
}

}  // namespace

std::unique_ptr<const Operator> read_convolution(Words& words) {
  auto made = std::make_unique<Convolution>();
  cpu::Convolution& c = made->constant;
  const Tensor& x = words.input();
  const Tensor& y = words.output();
  const std::size_t filters = y.last();
  const Tensor* scale = words.optional_input(filters);
  const Tensor* shift = words.optional_input(filters);
  const Tensor* residual = words.optional_input();
  const Tensor* index = words.optional_integers();
  c.activation = words.activation();
  const Tensor* y2 = words.optional_output();
  const Tensor* scale2 = words.optional_input(filters);
  const Tensor* shift2 = words.optional_input(filters);
  c.activation2 = words.activation();
  require(y2 == nullptr || y2->elements == y.elements, "the second output has another size");
  require(y2 != nullptr || (scale2 == nullptr && shift2 == nullptr),
          "what makes the second output is there without it");

  const WindowShape shape = read_window(words, x, y);
  c.transposed = words.below(2) == 1;
  check_window(shape.window, c.transposed ? shape.window.input : shape.window.output);
  c.batch = shape.batch;
  c.window = shape.window;
  c.in_channels = shape.channels;
  c.filters = filters;
  c.groups = words.positive();
  read_weights(words, *made, shape.taps());
  const std::size_t reads = product({c.groups, c.reduction});
  if (index != nullptr) {
    c.index = checked_index(*index, reads, c.in_channels);
  } else {
    require(reads == c.in_channels, "the weight's input channels are not those of the input");
  }
  read_residual(words, *made, y, residual);

  for (const Tensor* input : {&x, scale, shift, scale2, shift2}) {
    check_overlap(y, input);
    if (y2 != nullptr) check_overlap(*y2, input);
  }
  check_overlap(y, residual, c.residual_index == nullptr ? Overlap::kSame : Overlap::kNone);
  if (y2 != nullptr) {
    check_overlap(*y2, residual);
    check_overlap(*y2, &y);
  }
  made->x = Address(x);
  made->y = Address(y);
  made->scale = Address(scale);
  made->shift = Address(shift);
  made->residual = Address(residual);
  made->y2 = Address(y2);
  made->scale2 = Address(scale2);
  made->shift2 = Address(shift2);
  return made;
}

}  // namespace mdprune
