// The words of one operator, one after the other, with the checks that all operators share.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "operators.h"

namespace mdprune {

class Words {
 public:
  Words(const std::uint32_t* words, std::size_t count, const std::vector<Tensor>& tensors,
        std::vector<bool>& written)
      : words_(words), count_(count), tensors_(tensors), written_(written) {}

  std::uint32_t next();
  std::int32_t next_signed();
  float next_float();
  std::uint32_t below(std::uint32_t limit);  // a code
  std::size_t positive();
  cpu::Activation activation();

  // Tensors of float. `elements` 0: any number.
  const Tensor& input(std::size_t elements = 0);
  const Tensor* optional_input(std::size_t elements = 0);
  const Tensor& constant();
  const Tensor& output();
  const Tensor* optional_output();

  // Integers of the bundle.
  const Tensor& integers();
  const Tensor* optional_integers();

  void finish() const;  // nothing is left

 private:
  const Tensor& tensor(std::uint32_t number) const;
  const Tensor& real(std::uint32_t number, std::size_t elements) const;

  const std::uint32_t* words_;
  std::size_t count_;
  std::size_t at_ = 0;
  const std::vector<Tensor>& tensors_;
  std::vector<bool>& written_;
};

// Each of the `elements` selects from an axis of `size`.
const std::int32_t* checked_index(const Tensor& tensor, std::size_t elements, std::size_t size);

// An output against one of its inputs (null: absent).
enum class Overlap { kNone, kSame };  // kSame: it may be the same tensor
void check_overlap(const Tensor& output, const Tensor* input, Overlap allowed = Overlap::kNone);

}  // namespace mdprune
