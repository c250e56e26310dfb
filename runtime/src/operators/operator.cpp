#include "operator.h"

#include "words.h"

namespace mdprune {
namespace {

struct Entry {
  const char* kind;
  ReadOperator read;
};

// By code, from 1.
constexpr Entry kOperators[] = {
    {"Convolution", read_convolution},
    {"Depthwise", read_depthwise},
    {"Pool", read_pool},
    {"Affine", read_affine},
    {"Unary", read_unary},
    {"Binary", read_binary},
    {"Select", read_select},
    {"Reduce", read_reduce},
    {"Softmax", read_softmax},
    {"Normalize", read_normalize},
    {"MatMul", read_matmul},
    {"Move", read_move},
    {"Gather", read_gather},
    {"Fill", read_fill},
    {"Interpolate", read_interpolate},
};
constexpr std::uint32_t kCount = sizeof(kOperators) / sizeof(kOperators[0]);

}  // namespace

const char* operator_kind(std::uint32_t code) {
  return code >= 1 && code <= kCount ? kOperators[code - 1].kind : nullptr;
}

std::unique_ptr<const Operator> read_operator(std::uint32_t code, Words& words) {
  require(code >= 1 && code <= kCount, "unknown operator");
  auto made = kOperators[code - 1].read(words);
  words.finish();
  return made;
}

}  // namespace mdprune
