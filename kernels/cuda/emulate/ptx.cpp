#include "ptx.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda_fp16.h"
#include "fibres.h"

namespace mdprune::cuda::emulate {
namespace {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// Of one thread: groups that were committed, then the one that is open.
struct Copies {
  std::deque<std::vector<Copy>> groups = {{}};
  std::size_t block = 0;
};

std::deque<std::vector<Copy>>& copy_groups() {
  static std::vector<Copies> copies(1024);
  Copies& mine = copies[thread_number()];
  if (mine.block != block_number()) mine = {{{}}, block_number()};
  return mine.groups;
}

void require_aligned(const void* pointer, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0) return;
  std::fprintf(stderr, "emulated kernel: %s at an address that is no multiple of 16\n", what);
  std::abort();
}

float half_at(unsigned pair, int which) {
  return __half2float({static_cast<std::uint16_t>(pair >> (16 * which))});
}

}  // namespace

void copy_async(void* to, const void* from, int bytes) {
  require_aligned(to, "cp.async");
  if (bytes > 0) require_aligned(from, "cp.async");
  std::memset(to, 0xff, 16);
  copy_groups().back().push_back({to, from, bytes});
}

void commit_copies() { copy_groups().emplace_back(); }

void wait_copies(int left) {
  auto& groups = copy_groups();
  while (groups.size() > std::size_t(left) + 1) {
    for (const Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, std::size_t(copy.bytes));
    }
    groups.pop_front();
  }
}

void load_matrices(unsigned (&out)[4], const void* row, bool transposed) {
  struct Lane {
    const void* row;
    bool transposed;
    unsigned* out;
  } lane{row, transposed, out};
  require_aligned(row, "ldmatrix");
  meet_warp(
      0xffffffffU, transposed ? "ldmatrix.trans" : "ldmatrix", &lane, [](void* const(&values)[32]) {
        std::uint16_t matrices[4][8][8];
        for (int i = 0; i < 32; ++i) {
          std::memcpy(matrices[i / 8][i % 8], static_cast<Lane*>(values[i])->row, 16);
        }
        for (int i = 0; i < 32; ++i) {
          const Lane& to = *static_cast<Lane*>(values[i]);
          for (int m = 0; m < 4; ++m) {
            std::uint16_t pair[2];
            for (int k = 0; k < 2; ++k) {
              const int column = i % 4 * 2 + k;
              pair[k] = to.transposed ? matrices[m][column][i / 4] : matrices[m][i / 4][column];
            }
            std::memcpy(&to.out[m], pair, sizeof pair);
          }
        }
      });
}

void multiply_k8(float (&sums)[4], unsigned a0, unsigned a1, unsigned b) {
  struct Lane {
    float* sums;
    unsigned a[2], b;
  } lane{sums, {a0, a1}, b};
  meet_warp(0xffffffffU, "mma.m16n8k8", &lane, [](void* const(&values)[32]) {
    float a[16][8];
    float b[8][8];
    for (int i = 0; i < 32; ++i) {
      const Lane& from = *static_cast<Lane*>(values[i]);
      for (int k = 0; k < 2; ++k) {
        a[i / 4][i % 4 * 2 + k] = half_at(from.a[0], k);
        a[i / 4 + 8][i % 4 * 2 + k] = half_at(from.a[1], k);
        b[i % 4 * 2 + k][i / 4] = half_at(from.b, k);
      }
    }
    for (int i = 0; i < 32; ++i) {
      float* const out = static_cast<Lane*>(values[i])->sums;
      for (int e = 0; e < 4; ++e) {
        const int row = i / 4 + e / 2 * 8;
        const int column = i % 4 * 2 + e % 2;
        for (int k = 0; k < 8; ++k) out[e] += a[row][k] * b[k][column];
      }
    }
  });
}

void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Lane {
    float* sums;
    const unsigned* a;
    unsigned b[2];
  } lane{sums, a, {b0, b1}};
  meet_warp(0xffffffffU, "mma.m16n8k16", &lane, [](void* const(&values)[32]) {
    float a[16][16];
    float b[16][8];
    for (int i = 0; i < 32; ++i) {
      const Lane& from = *static_cast<Lane*>(values[i]);
      for (int part = 0; part < 4; ++part) {
        for (int k = 0; k < 2; ++k) {
          a[i / 4 + part % 2 * 8][part / 2 * 8 + i % 4 * 2 + k] = half_at(from.a[part], k);
        }
      }
      for (int part = 0; part < 2; ++part) {
        for (int k = 0; k < 2; ++k) b[part * 8 + i % 4 * 2 + k][i / 4] = half_at(from.b[part], k);
      }
    }
    for (int i = 0; i < 32; ++i) {
      float* const out = static_cast<Lane*>(values[i])->sums;
      for (int e = 0; e < 4; ++e) {
        const int row = i / 4 + e / 2 * 8;
        const int column = i % 4 * 2 + e % 2;
        for (int k = 0; k < 16; ++k) out[e] += a[row][k] * b[k][column];
      }
    }
  });
}

}  // namespace mdprune::cuda::emulate
