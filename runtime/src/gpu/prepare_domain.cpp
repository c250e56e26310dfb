#include "prepare_domain.h"

#include <cstdint>
#include <utility>

#include "operators/operators.h"

namespace mdprune {
namespace {

using Block = Operand::Block;

class Prepare final : public Visitor {
 public:
  Prepare(const Plan& plan, cuda::Type type, DeviceWeights& weights, DeviceTables& tables)
      : plan_(plan), type_(type), weights_(weights), tables_(tables) {
    domain_.arena_bytes = bytes(plan.arena_bytes / sizeof(float));
  }

  PreparedDomain run() {
    // The network's inputs and outputs are float, whatever the activations are.
    for (const mdp_tensor& port : plan_.inputs) inputs_.push_back(make_port(Block::kInput, port));
    for (const mdp_tensor& port : plan_.outputs)
      outputs_.push_back(make_port(Block::kOutput, port));
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const std::size_t n = plan_.inputs[i].elements;
      if (type_ != cuda::kFloat) convert(cuda::kFloat, {Block::kInput, i, n}, type_, inputs_[i], n);
    }
    for (const Step& step : plan_.steps) {
      step.operation->accept(*this);
      if (&step != &plan_.steps.back()) ++step_;
    }
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      const std::size_t n = plan_.outputs[i].elements;
      if (type_ != cuda::kFloat) {
        convert(type_, outputs_[i], cuda::kFloat, {Block::kOutput, i, n}, n);
      }
    }
    return {std::move(domain_), std::move(pending_)};
  }

  void visit(const Convolution& o) override {
    const cpu::Convolution& c = o.constant;
    PendingConvolution pending{&c, plan_.steps[step_].name, {}};
    const std::size_t taps = c.window.kernel[0] * c.window.kernel[1] * c.window.kernel[2];
    for (const cpu::Slab& slab : o.slabs) {
      pending.weights.push_back(weights_.add(slab.data, taps * slab.rows * slab.filters));
    }
    if (c.packed != nullptr) {
      const std::size_t blocks = (c.filters / c.groups + 15) / 16;
      pending.weights.push_back(
          weights_.add(c.packed, c.groups * blocks * taps * c.reduction * 16));
    }
    pending_.push_back(std::move(pending));

    const Operand x = aligned(o.x), y = activation(o.y), y2 = activation(o.y2);
    const Operand scale = floats(o.scale), shift = floats(o.shift);
    const Operand scale2 = floats(o.scale2), shift2 = floats(o.shift2);
    const Operand residual = activation(o.residual);
    const Operand residual_index = index(c.residual_index, c.filters);
    const std::size_t number = domain_.convolutions.size();
    domain_.convolutions.emplace_back();
    domain_.convolution_kernels.push_back(domain_.kernels.size());
    add([=](const DeviceRun& run) {
      cuda::Convolution now = run.convolutions[number];
      now.x = x.x(run);
      now.y = y.y(run);
      now.scale = scale.floats(run);
      now.shift = shift.floats(run);
      now.residual = residual.x(run);
      now.residual_index = residual_index.index(run);
      now.y2 = y2.y(run);
      now.scale2 = scale2.floats(run);
      now.shift2 = shift2.floats(run);
      return run.library->convolution(now, run.tilings[number], run.launch);
    });
  }

  void visit(const Depthwise& o) override {
    const cpu::Depthwise& d = o.constant;
    const cuda::Depthwise constant{type_,     d.batch, d.window, d.in_channels,
                                   d.filters, nullptr, nullptr,  nullptr,
                                   nullptr,   nullptr, nullptr,  d.activation};
    const Operand x = activation(o.x), y = activation(o.y), weight = activation(o.weight);
    const Operand scale = floats(o.scale), shift = floats(o.shift);
    const Operand residual = activation(o.residual);
    add([=](const DeviceRun& run) {
      cuda::Depthwise now = constant;
      now.x = x.x(run);
      now.y = y.y(run);
      now.weight = weight.x(run);
      now.scale = scale.floats(run);
      now.shift = shift.floats(run);
      now.residual = residual.x(run);
      return run.library->depthwise(now, run.launch);
    });
  }

  void visit(const Pool& o) override {
    const cpu::Pool& p = o.constant;
    const Operand x = activation(o.x), y = activation(o.y);
    add([=, type = type_](const DeviceRun& run) {
      return run.library->pool({type, p.batch, p.window, p.channels, p.kind, x.x(run), y.y(run)},
                               run.launch);
    });
  }

  void visit(const Affine& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    const Operand scale = floats(o.scale), shift = floats(o.shift);
    const Operand chosen = index(o.index, o.channels);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->affine(
          {type, o.rows, o.channels_in, o.channels, x.x(run), y.y(run), chosen.index(run),
           scale.floats(run), shift.floats(run), o.activation},
          run.launch);
    });
  }

  void visit(const Unary& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->unary({type, o.elements, x.x(run), y.y(run), o.activation}, run.launch);
    });
  }

  void visit(const Binary& o) override {
    const Operand a = activation(o.a), b = activation(o.b), y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->binary({type, o.kind, o.size.size(), o.size.data(), o.a_stride.data(),
                                  o.b_stride.data(), a.x(run), b.x(run), y.y(run), o.activation},
                                 run.launch);
    });
  }

  void visit(const Select& o) override {
    const Operand c = activation(o.c), a = activation(o.a), b = activation(o.b),
                  y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->select(
          {type, o.size.size(), o.size.data(), o.c_stride.data(), o.a_stride.data(),
           o.b_stride.data(), c.x(run), a.x(run), b.x(run), y.y(run)},
          run.launch);
    });
  }

  void visit(const Reduce& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->reduce(
          {type, o.kind, o.axes.outer, o.axes.n, o.axes.inner, x.x(run), y.y(run)}, run.launch);
    });
  }

  void visit(const Softmax& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->softmax(
          {type, o.log, o.axes.outer, o.axes.n, o.axes.inner, x.x(run), y.y(run)}, run.launch);
    });
  }

  void visit(const Normalize& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->normalize(
          {type, o.epsilon, o.axes.outer, o.axes.n, o.axes.inner, x.x(run), y.y(run)}, run.launch);
    });
  }

  void visit(const MatMul& o) override {
    const Operand a = activation(o.a), b = activation(o.b), y = activation(o.y);
    std::size_t batch = 1;
    for (const std::size_t size : o.batch) batch *= size;
    const Operand a_offset = offsets(o.batch, o.a_stride, batch, o.m * o.k);
    const Operand b_offset = offsets(o.batch, o.b_stride, batch, o.k * o.n);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->matmul(
          {type, batch, o.m, o.k, o.n, a.x(run), b.x(run), y.y(run),
           a_offset.read<std::int64_t>(run), b_offset.read<std::int64_t>(run)},
          run.launch);
    });
  }

  void visit(const Move& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    const std::size_t x_bytes = bytes(static_cast<std::size_t>(o.x_offset));
    const std::size_t y_bytes = bytes(static_cast<std::size_t>(o.y_offset));
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->move(
          {type, o.size.size(), o.size.data(), o.x_stride.data(), o.y_stride.data(),
           x.read<std::uint8_t>(run) + x_bytes, y.write<std::uint8_t>(run) + y_bytes},
          run.launch);
    });
  }

  void visit(const Gather& o) override {
    const Operand x = activation(o.x), y = activation(o.y), chosen = index(o.index, o.count);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->gather(
          {type, o.outer, o.n, o.inner, o.count, chosen.index(run), x.x(run), y.y(run)},
          run.launch);
    });
  }

  void visit(const Fill& o) override {
    const Operand y = activation(o.y);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->fill({type, o.elements, o.value, y.y(run)}, run.launch);
    });
  }

  void visit(const Interpolate& o) override {
    const Operand x = activation(o.x), y = activation(o.y);
    const Operand chosen = index(o.index, o.count * o.taps), weight = floats(o.weight);
    add([=, &o, type = type_](const DeviceRun& run) {
      return run.library->interpolate({type, o.outer, o.n, o.inner, o.count, o.taps,
                                       chosen.index(run), weight.floats(run), x.x(run), y.y(run)},
                                      run.launch);
    });
  }

 private:
  std::size_t bytes(std::size_t elements) const { return elements * cuda::size_of(type_); }

  template <typename F>
  void add(F launch) {
    domain_.kernels.push_back({step_, std::move(launch)});
  }

  // Memory of the arena beside the plan's own.
  Operand make_arena(std::size_t size) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t offset = (domain_.arena_bytes + kAlignment - 1) / kAlignment * kAlignment;
    domain_.arena_bytes = offset + size;
    return {Block::kArena, offset, 0};
  }

  Operand make_port(Block block, const mdp_tensor& port) {
    const std::size_t number = block == Block::kInput ? inputs_.size() : outputs_.size();
    if (type_ == cuda::kFloat) return {block, number, port.elements};
    return make_arena(bytes(port.elements));
  }

  void convert(cuda::Type from, const Operand& x, cuda::Type to, const Operand& y, std::size_t n) {
    add([=](const DeviceRun& run) {
      return run.library->convert({from, to, n, x.x(run), y.y(run)}, run.launch);
    });
  }

  // An operand of the activations' type.
  Operand activation(const Address& address) {
    if (address.is_absent()) return {};
    switch (address.place()) {
      case Place::kArena: return {Block::kArena, bytes(address.offset() / sizeof(float)), 0};
      case Place::kInput: return inputs_[address.offset()];
      case Place::kOutput: return outputs_[address.offset()];
      default: return weights_.add(address.constant(), address.elements());
    }
  }

  // One that begins at a multiple of 16 bytes, as a convolution's input must; a copy if need be.
  // The memory that a caller gives begins so.
  Operand aligned(const Address& address) {
    constexpr std::size_t kAlignment = 16;
    const Operand operand = activation(address);
    const bool port = operand.block == Block::kInput || operand.block == Block::kOutput;
    if ((port ? operand.stride * sizeof(float) : operand.offset) % kAlignment == 0) return operand;
    const Operand copied = make_arena(bytes(address.elements()));
    add([=, type = type_, n = address.elements()](const DeviceRun& run) {
      return run.library->unary({type, n, operand.x(run), copied.y(run), {}}, run.launch);
    });
    return copied;
  }

  // One that kernels read as floats, whatever the activations are.
  Operand floats(const Address& address) {
    if (address.is_absent()) return {};
    if (address.constant() != nullptr) {
      return tables_.add(address.constant(), address.elements() * sizeof(float));
    }
    const Operand operand = activation(address);
    if (type_ == cuda::kFloat) return operand;
    const Operand converted = make_arena(address.elements() * sizeof(float));
    convert(type_, operand, cuda::kFloat, converted, address.elements());
    return converted;
  }

  Operand index(const std::int32_t* list, std::size_t count) {
    return list == nullptr ? Operand{} : tables_.add(list, count * sizeof(std::int32_t));
  }

  // Elements before every matrix of a batch; absent if they follow one another, `size` apart.
  Operand offsets(const std::vector<std::size_t>& batch, const std::vector<std::size_t>& stride,
                  std::size_t count, std::size_t size) {
    std::vector<std::int64_t> list(count);
    bool follow = true;
    for (std::size_t i = 0; i < count; ++i) {
      std::size_t rest = i;
      std::size_t offset = 0;
      for (std::size_t axis = batch.size(); axis-- > 0; rest /= batch[axis]) {
        offset += rest % batch[axis] * stride[axis];
      }
      list[i] = static_cast<std::int64_t>(offset);
      follow = follow && offset == i * size;
    }
    return follow ? Operand{} : tables_.copy(list.data(), count * sizeof(std::int64_t));
  }

  const Plan& plan_;
  const cuda::Type type_;
  DeviceWeights& weights_;
  DeviceTables& tables_;
  std::size_t step_ = 0;
  std::vector<Operand> inputs_, outputs_;
  DeviceDomain domain_;
  std::vector<PendingConvolution> pending_;
};

}  // namespace

PreparedDomain prepare_domain(const Plan& plan, cuda::Type type, DeviceWeights& weights,
                              DeviceTables& tables) {
  return Prepare(plan, type, weights, tables).run();
}

}  // namespace mdprune
