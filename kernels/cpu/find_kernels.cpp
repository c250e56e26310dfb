#include <cstdlib>
#include <cstring>

#include "tables.h"

namespace mdprune::cpu {
namespace {

// The fastest first.
const Kernels* there(std::size_t i) {
  switch (i) {
#if defined(MDPRUNE_HAS_AVX512)
    case 0:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("fma")
                 ? &avx512::kKernels
                 : nullptr;
#endif
#if defined(MDPRUNE_HAS_AVX2)
    case 1:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kKernels
                                                                             : nullptr;
#endif
#if defined(MDPRUNE_HAS_NEON)
    case 2: return &neon::kKernels;
#endif
    case 3: return &portable::kKernels;
    case 4: return &reference::kKernels;
    default: return nullptr;
  }
}

constexpr std::size_t kTables = 5;

}  // namespace

const Kernels* find_kernels(const char* name) {
  if (name == nullptr) name = std::getenv("MDPRUNE_ISA");
  for (std::size_t i = 0; i < kTables; ++i) {
    const Kernels* kernels = there(i);
    if (kernels == nullptr) continue;
    if (name == nullptr || *name == '\0' || std::strcmp(name, kernels->name) == 0) return kernels;
  }
  return nullptr;
}

}  // namespace mdprune::cpu
