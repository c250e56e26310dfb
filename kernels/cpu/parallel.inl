// Loops over a Parallel. Pieces never share an output element and never split a sum, so that
// results do not depend on the number of workers.

#pragma once

#include "kernels.h"

namespace mdprune::cpu::MDPRUNE_ISA {

// Elements of cheap work that are worth waking another thread for.
constexpr std::size_t kGrain = 16384;

// f(index, worker) for every index below count.
template <typename F>
inline void for_each(const Parallel& parallel, std::size_t count, const F& f) {
  if (count <= 1 || parallel.workers <= 1) {
    for (std::size_t i = 0; i < count; ++i) f(i, 0);
    return;
  }
  const auto body = [](void* argument, std::size_t index, std::size_t worker) {
    (*static_cast<const F*>(argument))(index, worker);
  };
  parallel.run(parallel.self, count, body, const_cast<F*>(&f));
}

// f(begin, end) for ranges that together are [0, n); an item is `cost` elements of work.
template <typename F>
inline void for_ranges(const Parallel& parallel, std::size_t n, std::size_t cost, const F& f) {
  const std::size_t most = 4 * parallel.workers;
  std::size_t pieces = cost >= kGrain ? n : n / (kGrain / (cost == 0 ? 1 : cost));
  if (pieces > n) pieces = n;
  if (pieces > most) pieces = most;
  if (pieces <= 1 || parallel.workers <= 1) {
    if (n > 0) f(std::size_t{0}, n);
    return;
  }
  const std::size_t share = n / pieces;
  const std::size_t longer = n % pieces;  // so many ranges have one item more
  for_each(parallel, pieces, [&](std::size_t i, std::size_t) {
    const std::size_t begin = i * share + (i < longer ? i : longer);
    f(begin, begin + share + (i < longer ? 1 : 0));
  });
}

}  // namespace mdprune::cpu::MDPRUNE_ISA
