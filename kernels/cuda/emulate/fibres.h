// The threads of one block as fibres on the thread that launches: the next one runs when the one
// before it waits. What waits for ever (a barrier that not every thread reaches, a warp that does
// not meet at one instruction) is reported and aborts.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx{};
inline uint3 blockIdx{};
inline dim3 blockDim{};
inline dim3 gridDim{};
constexpr int warpSize = 32;

namespace mdprune::cuda::emulate {

// Blocks, and the warps of a block, run from the last to the first: what a missing barrier lets
// pass in one order it does not in the other. Set between launches.
inline bool reversed = false;

// Runs a block after the other, each with `shared` bytes of dynamic shared memory that begin as
// NaN. One launch runs at a time.
void run(dim3 grid, dim3 block, std::size_t shared, const std::function<void()>& kernel);

unsigned char* dynamic_shared();

// Number of this thread in its block, and of the block among all that ever ran.
unsigned thread_number();
std::size_t block_number();

void block_barrier();

// Every live lane of the warp in `mask` gives a value and waits for the others; the last one to
// come calls `meet` with the values by lane, null where there is none. `what` names the instruction
// for the report if lanes meet at different ones.
using Meet = void (*)(void* const (&values)[32]);
void meet_warp(unsigned mask, const char* what, void* value, Meet meet);

}  // namespace mdprune::cuda::emulate
