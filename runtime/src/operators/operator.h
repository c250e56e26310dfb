// A checked operator: what it does, not how a device does it.

#pragma once

#include <cstdint>
#include <memory>

#include "cpu/kernels.h"

namespace mdprune {

class Visitor;

class Operator {
 public:
  Operator() = default;
  Operator(const Operator&) = delete;
  Operator& operator=(const Operator&) = delete;
  virtual ~Operator() = default;
  // Calls the visitor's function for this kind of operator.
  virtual void accept(Visitor& visitor) const = 0;
  // The convolution that this operator is, without its operands, or null.
  virtual const cpu::Convolution* convolution() const { return nullptr; }
};

class Words;

// Reads and checks the words of an operator; throws Failure.
std::unique_ptr<const Operator> read_operator(std::uint32_t code, Words& words);
// Its name in docs/native-format.md, or null.
const char* operator_kind(std::uint32_t code);

using ReadOperator = std::unique_ptr<const Operator> (*)(Words&);
std::unique_ptr<const Operator> read_convolution(Words& words);
std::unique_ptr<const Operator> read_depthwise(Words& words);
std::unique_ptr<const Operator> read_pool(Words& words);
std::unique_ptr<const Operator> read_affine(Words& words);
std::unique_ptr<const Operator> read_unary(Words& words);
std::unique_ptr<const Operator> read_binary(Words& words);
std::unique_ptr<const Operator> read_select(Words& words);
std::unique_ptr<const Operator> read_reduce(Words& words);
std::unique_ptr<const Operator> read_softmax(Words& words);
std::unique_ptr<const Operator> read_normalize(Words& words);
std::unique_ptr<const Operator> read_matmul(Words& words);
std::unique_ptr<const Operator> read_move(Words& words);
std::unique_ptr<const Operator> read_gather(Words& words);
std::unique_ptr<const Operator> read_fill(Words& words);
std::unique_ptr<const Operator> read_interpolate(Words& words);

}  // namespace mdprune
