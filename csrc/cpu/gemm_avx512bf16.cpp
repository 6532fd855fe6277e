// bf16 GEMM with fp32 results for CPUs with AVX512-BF16 (Zen 4, Cooper Lake and later).
// A panel of 32 columns of B is packed as pairs along k (64 KiB, in L2); blocks of 12 rows of A are read in place, a pair
// at a time, and multiplied into 24 accumulators.
#include <immintrin.h>
#include <omp.h>

#include "cpu/gemm_pack.h"

namespace mmfast {
namespace {

constexpr int kColumns = 32, kRows = 12;
constexpr int64_t kDepth = 1024;

template <int R>
void block(const uint16_t* a, int64_t a_row, const uint32_t* panel, int64_t depth, float* c, int64_t c_stride,
           __mmask16 left, __mmask16 right, bool accumulate) {
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    sum[r][0] = accumulate ? _mm512_maskz_loadu_ps(left, c + r * c_stride) : _mm512_setzero_ps();
    sum[r][1] = accumulate ? _mm512_maskz_loadu_ps(right, c + r * c_stride + 16) : _mm512_setzero_ps();
  }
  const int64_t pairs = depth / 2;
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512bh b0 = (__m512bh)_mm512_load_si512(panel + p * kColumns);
    const __m512bh b1 = (__m512bh)_mm512_load_si512(panel + p * kColumns + 16);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a + r * a_row + 2 * p, sizeof pair);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
    }
  }
  if (depth % 2) {
    const __m512bh b0 = (__m512bh)_mm512_load_si512(panel + pairs * kColumns);
    const __m512bh b1 = (__m512bh)_mm512_load_si512(panel + pairs * kColumns + 16);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(a[r * a_row + 2 * pairs]);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    _mm512_mask_storeu_ps(c + r * c_stride, left, sum[r][0]);
    _mm512_mask_storeu_ps(c + r * c_stride + 16, right, sum[r][1]);
  }
}

using Block = decltype(&block<1>);
constexpr Block kBlocks[kRows + 1] = {nullptr,  block<1>, block<2>, block<3>,  block<4>,  block<5>, block<6>,
                                      block<7>, block<8>, block<9>, block<10>, block<11>, block<12>};

}  // namespace

bool gemm_avx512bf16(const Bf16Gemm& g) {
  const int64_t panels = (g.n + kColumns - 1) / kColumns;
  // with fewer panels than threads the rows are cut too
  int64_t cuts = panels < g.threads ? (g.threads + panels - 1) / panels : 1;
  const int64_t rows_a_cut = ((g.m + cuts - 1) / cuts + kRows - 1) / kRows * kRows;
  cuts = (g.m + rows_a_cut - 1) / rows_a_cut;
  const int64_t panel_size = kDepth / 2 * kColumns;
  Scratch scratch(panel_size * 4 * g.threads);
  if (!scratch.data) return false;
#pragma omp parallel for num_threads(g.threads) if (g.threads > 1) schedule(dynamic, 4)
  for (int64_t task = 0; task < panels * cuts; ++task) {
    const int64_t n0 = task / cuts * kColumns, first = task % cuts * rows_a_cut;
    const int64_t stop = first + rows_a_cut < g.m ? first + rows_a_cut : g.m;
    const int64_t columns = g.n - n0 < kColumns ? g.n - n0 : kColumns;
    const __mmask16 left = columns >= 16 ? 0xffff : __mmask16((1u << columns) - 1);
    const __mmask16 right = columns >= 32 ? 0xffff : columns > 16 ? __mmask16((1u << (columns - 16)) - 1) : 0;
    uint32_t* panel = reinterpret_cast<uint32_t*>(scratch.data) + omp_get_thread_num() * panel_size;
    for (int64_t k0 = 0; k0 < g.k; k0 += kDepth) {
      const int64_t depth = g.k - k0 < kDepth ? g.k - k0 : kDepth;
      pack_b<kColumns>(g, k0, depth, (depth + 1) / 2, n0, columns, panel);
      for (int64_t row = first; row < stop; row += kRows) {
        const int64_t rows = stop - row < kRows ? stop - row : kRows;
        kBlocks[rows](g.a + row * g.a_row + k0, g.a_row, panel, depth, g.c + row * g.c_stride + n0, g.c_stride, left,
                      right, g.accumulate || k0 > 0);
      }
    }
  }
  return true;
}

}  // namespace mmfast
