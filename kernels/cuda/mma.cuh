// The PTX instructions of the tensor-core kernels, and their emulation for a host compiler.
// Layouts: PTX ISA, sections on mma.m16n8k16, ldmatrix and cp.async.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if !defined(__CUDACC__)
#include "emulate/ptx.h"
#endif

namespace mdprune::cuda {

// sm_80 and later copy to shared memory while the threads go on.
#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kAsyncCopies = false;
#else
constexpr bool kAsyncCopies = true;
#endif
#else
#if defined(MDPRUNE_EMULATE_SM75)
constexpr bool kAsyncCopies = false;
#else
constexpr bool kAsyncCopies = true;
#endif
#endif

#if defined(__CUDACC__)

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, of which the first `bytes` come from `from` and the others are zero.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
#endif
}

__device__ __forceinline__ void commit_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of copies but the last `left`.
template <int left>
__device__ __forceinline__ void wait_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

// Four 8 x 8 matrices of halves; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums (16 x 8) += a (16 x 16) b (16 x 8).
__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#else

inline void copy_async(void* to, const void* from, int bytes) {
  emulate::copy_async(to, from, bytes);
}
inline void commit_copies() { emulate::commit_copies(); }
template <int left>
void wait_copies() {
  emulate::wait_copies(left);
}
inline void load_matrices(unsigned (&out)[4], const void* row) {
  emulate::load_matrices(out, row, false);
}
inline void load_matrices_transposed(unsigned (&out)[4], const void* row) {
  emulate::load_matrices(out, row, true);
}
inline void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if (kAsyncCopies) {
    emulate::multiply(sums, a, b0, b1);
  } else {
    emulate::multiply_k8(sums, a[0], a[1], b0);
    emulate::multiply_k8(sums, a[2], a[3], b1);
  }
}

#endif

}  // namespace mdprune::cuda
