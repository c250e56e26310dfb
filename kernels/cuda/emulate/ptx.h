// Instructions of PTX as mma.cuh uses them.

#pragma once

namespace mdprune::cuda::emulate {

// The copy is made when it is waited for, and its target is NaN until then: it neither comes too
// early for what is read before, nor too late for what is read after.
void copy_async(void* to, const void* from, int bytes);
void commit_copies();
void wait_copies(int left);

void load_matrices(unsigned (&out)[4], const void* row, bool transposed);
void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
void multiply_k8(float (&sums)[4], unsigned a0, unsigned a1, unsigned b);

}  // namespace mdprune::cuda::emulate
