// The operators of docs/native-format.md as their readers leave them: sizes, strides and constants
// that fit, operands as addresses. A device visits them: the CPU to run them, others to prepare.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "operator.h"
#include "tensor.h"

namespace mdprune {

struct Convolution;
struct Depthwise;
struct Pool;
struct Affine;
struct Unary;
struct Binary;
struct Select;
struct Reduce;
struct Softmax;
struct Normalize;
struct MatMul;
struct Move;
struct Gather;
struct Fill;
struct Interpolate;

class Visitor {
 public:
  virtual void visit(const Convolution&) = 0;
  virtual void visit(const Depthwise&) = 0;
  virtual void visit(const Pool&) = 0;
  virtual void visit(const Affine&) = 0;
  virtual void visit(const Unary&) = 0;
  virtual void visit(const Binary&) = 0;
  virtual void visit(const Select&) = 0;
  virtual void visit(const Reduce&) = 0;
  virtual void visit(const Softmax&) = 0;
  virtual void visit(const Normalize&) = 0;
  virtual void visit(const MatMul&) = 0;
  virtual void visit(const Move&) = 0;
  virtual void visit(const Gather&) = 0;
  virtual void visit(const Fill&) = 0;
  virtual void visit(const Interpolate&) = 0;

 protected:
  ~Visitor() = default;
};

template <typename Kind>
struct Visited : Operator {
  void accept(Visitor& visitor) const override { visitor.visit(static_cast<const Kind&>(*this)); }
};

struct Convolution : Visited<Convolution> {
  cpu::Convolution constant{};  // all but the operands below
  std::vector<cpu::Slab> slabs;
  Address x, y, scale, shift, residual, y2, scale2, shift2;

  const cpu::Convolution* convolution() const override { return &constant; }
};

struct Depthwise : Visited<Depthwise> {
  cpu::Depthwise constant{};
  Address x, y, weight, scale, shift, residual;
};

struct Pool : Visited<Pool> {
  cpu::Pool constant{};
  Address x, y;
};

struct Affine : Visited<Affine> {
  std::size_t rows, channels_in, channels;
  const std::int32_t* index = nullptr;
  cpu::Activation activation;
  Address x, y, scale, shift;
};

struct Unary : Visited<Unary> {
  std::size_t elements;
  cpu::Activation activation;
  Address x, y;
};

struct Binary : Visited<Binary> {
  std::uint32_t kind;
  std::vector<std::size_t> size, a_stride, b_stride;
  cpu::Activation activation;
  Address a, b, y;
};

struct Select : Visited<Select> {
  std::vector<std::size_t> size, c_stride, a_stride, b_stride;
  Address c, a, b, y;
};

// A tensor as three axes; the middle one is reduced or normalised.
struct Axes {
  std::size_t outer, n, inner;
};

struct Reduce : Visited<Reduce> {
  std::uint32_t kind;
  Axes axes;
  Address x, y;
};

struct Softmax : Visited<Softmax> {
  bool log;
  Axes axes;
  Address x, y;
};

struct Normalize : Visited<Normalize> {
  float epsilon;
  Axes axes;
  Address x, y;
};

// Matrices (m, k) times (k, n), one for every index vector of the batch.
struct MatMul : Visited<MatMul> {
  std::size_t m, k, n;
  std::vector<std::size_t> batch, a_stride, b_stride;
  Address a, b, y;
};

struct Move : Visited<Move> {
  std::vector<std::size_t> size;
  std::vector<std::ptrdiff_t> x_stride, y_stride;
  std::ptrdiff_t x_offset, y_offset;
  Address x, y;
};

struct Gather : Visited<Gather> {
  std::size_t outer, n, inner, count;
  const std::int32_t* index;
  Address x, y;
};

struct Fill : Visited<Fill> {
  std::size_t elements;
  float value;
  Address y;
};

struct Interpolate : Visited<Interpolate> {
  std::size_t outer, n, inner, count, taps;
  const std::int32_t* index;
  Address x, y, weight;
};

}  // namespace mdprune
