// The bf16 GEMM over 16 x 16 tile registers, written once for the AMX unit and for a scalar emulation of it.
// Tiles has load<t>(from, stride in bytes), zero<t>(), store<t>(to, stride) and multiply<c, a, b>() on 8 tiles of 16 rows
// of 64 bytes: c[m][n] += sum over pairs p of a[m][2p] b[p][2n] + a[m][2p + 1] b[p][2n + 1].
#pragma once
#include <omp.h>

#include "cpu/gemm_pack.h"

namespace mmfast {
namespace {

constexpr int kSide = 32;                 // a block of C is 2 x 2 tiles
constexpr int64_t kStep = 32, kDeep = 1024;  // k of one multiply; k of one panel

// panel[block of 32 k][32 rows][32 k], zero outside the matrix
void pack_a(const Bf16Gemm& g, int64_t row, int64_t k0, int64_t depth, uint16_t* panel) {
  const int64_t rows = g.m - row < kSide ? g.m - row : kSide;
  for (int64_t k = 0; k < depth; k += kStep) {
    const int64_t width = depth - k < kStep ? depth - k : kStep;
    for (int64_t r = 0; r < kSide; ++r, panel += kStep) {
      if (r >= rows || width < kStep) memset(panel, 0, kStep * 2);
      if (r >= rows) continue;
      const uint16_t* from = g.a + (row + r) * g.a_row + (k0 + k) * g.a_col;
      if (g.a_col == 1)
        memcpy(panel, from, width * 2);
      else
        for (int64_t i = 0; i < width; ++i) panel[i] = from[i * g.a_col];
    }
  }
}

template <class Tiles>
bool gemm_tiles(const Bf16Gemm& g) {
  const int64_t row_panels = (g.m + kSide - 1) / kSide, panels = (g.n + kSide - 1) / kSide;
  const int64_t a_size = kSide * kDeep, b_size = kDeep / 2 * kSide;  // in bf16, in pairs
  Scratch a_scratch(row_panels * a_size * 2), b_scratch(g.threads * b_size * 4), c_scratch(g.threads * kSide * kSide * 4);
  if (!a_scratch.data || !b_scratch.data || !c_scratch.data) return false;
  uint16_t* a_panels = reinterpret_cast<uint16_t*>(a_scratch.data);
  for (int64_t k0 = 0; k0 < g.k; k0 += kDeep) {
    const int64_t depth = g.k - k0 < kDeep ? g.k - k0 : kDeep, steps = (depth + kStep - 1) / kStep;
    const bool add = g.accumulate || k0 > 0;
#pragma omp parallel num_threads(g.threads) if (g.threads > 1)
    {
      Tiles tiles;
      uint32_t* b_panel = reinterpret_cast<uint32_t*>(b_scratch.data) + omp_get_thread_num() * b_size;
      float* block = reinterpret_cast<float*>(c_scratch.data) + omp_get_thread_num() * kSide * kSide;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < row_panels; ++i) pack_a(g, i * kSide, k0, depth, a_panels + i * a_size);
#pragma omp for schedule(dynamic, 4)
      for (int64_t j = 0; j < panels; ++j) {
        const int64_t n0 = j * kSide, columns = g.n - n0 < kSide ? g.n - n0 : kSide;
        pack_b<kSide>(g, k0, depth, steps * kStep / 2, n0, columns, b_panel);
        for (int64_t i = 0; i < row_panels; ++i) {
          tiles.template zero<0>(), tiles.template zero<1>(), tiles.template zero<2>(), tiles.template zero<3>();
          const uint16_t* a = a_panels + i * a_size;
          for (int64_t s = 0; s < steps; ++s) {
            const uint16_t* a_step = a + s * kSide * kStep;
            const uint32_t* b_step = b_panel + s * kStep / 2 * kSide;
            tiles.template load<4>(a_step, kStep * 2);
            tiles.template load<5>(a_step + 16 * kStep, kStep * 2);
            tiles.template load<6>(b_step, kSide * 4);
            tiles.template load<7>(b_step + 16, kSide * 4);
            tiles.template multiply<0, 4, 6>();
            tiles.template multiply<1, 4, 7>();
            tiles.template multiply<2, 5, 6>();
            tiles.template multiply<3, 5, 7>();
          }
          tiles.template store<0>(block, kSide * 4);
          tiles.template store<1>(block + 16, kSide * 4);
          tiles.template store<2>(block + 16 * kSide, kSide * 4);
          tiles.template store<3>(block + 16 * kSide + 16, kSide * 4);
          const int64_t rows = g.m - i * kSide < kSide ? g.m - i * kSide : kSide;
          for (int64_t r = 0; r < rows; ++r) {
            float* c = g.c + (i * kSide + r) * g.c_stride + n0;
            const float* from = block + r * kSide;
            if (add)
              for (int64_t v = 0; v < columns; ++v) c[v] += from[v];
            else
              memcpy(c, from, columns * 4);
          }
        }
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace mmfast
