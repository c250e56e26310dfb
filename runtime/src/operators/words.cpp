#include "words.h"

#include <algorithm>
#include <cstring>

namespace mdprune {
namespace {

constexpr std::uint32_t kNone = 0xFFFFFFFF;

}  // namespace

std::uint32_t Words::next() {
  require(at_ < count_, "a word is missing");
  return words_[at_++];
}

std::int32_t Words::next_signed() {
  const std::uint32_t word = next();
  std::int32_t value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

float Words::next_float() {
  const std::uint32_t word = next();
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

std::uint32_t Words::below(std::uint32_t limit) {
  const std::uint32_t word = next();
  require(word < limit, "a code is unknown");
  return word;
}

std::size_t Words::positive() {
  const std::uint32_t word = next();
  require(word > 0, "a size is 0");
  return word;
}

cpu::Activation Words::activation() {
  cpu::Activation activation;
  activation.code = below(cpu::kActivationCodes);
  activation.a = next_float();
  activation.b = next_float();
  return activation;
}

const Tensor& Words::tensor(std::uint32_t number) const {
  require(number < tensors_.size(), "there is no such tensor");
  return tensors_[number];
}

const Tensor& Words::real(std::uint32_t number, std::size_t elements) const {
  const Tensor& found = tensor(number);
  require(!found.integer, "a tensor of integers stands where floats are needed");
  require(elements == 0 || found.elements == elements, "a tensor's number of elements is wrong");
  return found;
}

const Tensor& Words::input(std::size_t elements) { return real(next(), elements); }

const Tensor* Words::optional_input(std::size_t elements) {
  const std::uint32_t number = next();
  return number == kNone ? nullptr : &real(number, elements);
}

const Tensor& Words::constant() {
  const Tensor& found = input();
  require(found.is_constant(), "weights are not in the bundle");
  return found;
}

const Tensor& Words::output() {
  const Tensor& found = input();
  require(found.place == Place::kArena || found.place == Place::kOutput,
          "an operator writes what is read-only");
  if (found.place == Place::kOutput) written_[found.offset] = true;
  return found;
}

const Tensor* Words::optional_output() {
  if (at_ < count_ && words_[at_] == kNone) {
    ++at_;
    return nullptr;
  }
  return &output();
}

const Tensor& Words::integers() {
  const Tensor& found = tensor(next());
  require(found.integer && found.is_constant(), "an index list is not one of the bundle");
  return found;
}

const Tensor* Words::optional_integers() {
  if (at_ < count_ && words_[at_] == kNone) {
    ++at_;
    return nullptr;
  }
  return &integers();
}

void Words::finish() const { require(at_ == count_, "words are left"); }

const std::int32_t* checked_index(const Tensor& tensor, std::size_t elements, std::size_t size) {
  require(tensor.elements == elements, "an index list's length is wrong");
  const auto* index = reinterpret_cast<const std::int32_t*>(tensor.constant);
  const bool inside = std::all_of(index, index + elements, [size](std::int32_t entry) {
    return entry >= 0 && static_cast<std::size_t>(entry) < size;
  });
  require(inside, "an index is outside of its axis");
  return index;
}

void check_overlap(const Tensor& output, const Tensor* input, Overlap allowed) {
  if (input == nullptr || input->place != output.place) return;
  const bool same = input->offset == output.offset && input->elements == output.elements;
  if (same && allowed == Overlap::kSame) return;
  if (output.place == Place::kOutput) {
    require(input->offset != output.offset, "an output overlaps an input");
    return;
  }
  const std::size_t output_end = output.offset + output.elements * sizeof(float);
  const std::size_t input_end = input->offset + input->elements * sizeof(float);
  require(output_end <= input->offset || input_end <= output.offset, "an output overlaps an input");
}

}  // namespace mdprune
