// bf16 GEMM with fp32 results for CPUs with AVX512-BF16 (Zen 4, Cooper Lake and later).
// A panel of 32 columns of B is packed as pairs along k (64 KiB, in L2); blocks of 12 rows of A are read in place, a pair
// at a time, and multiplied into 24 accumulators.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own avx512fintrin.h
#include <immintrin.h>
#include <omp.h>

#include "cpu/scratch.h"
#include "ops.h"

namespace mmfast {
namespace {

constexpr int kColumns = 32, kRows = 12;
constexpr int64_t kDepth = 1024;

inline uint32_t pair_of(const uint16_t* from, int64_t stride, bool both) {
  return uint32_t(from[0]) | (both ? uint32_t(from[stride]) << 16 : 0u);
}

// 16 x 16 transpose of 32-bit lanes.
inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// panel[p][j] = the pair (B[k0 + 2p, n0 + j], B[k0 + 2p + 1, n0 + j]), zero outside k < depth and j < columns.
// p runs over `pairs`, j over kColumns.
inline void pack_b(const Bf16Gemm& g, int64_t k0, int64_t depth, int64_t pairs, int64_t n0, int64_t columns, uint32_t* panel) {
  const uint16_t* b = g.b + k0 * g.b_row + n0 * g.b_col;
  int64_t p = 0;
  if (g.b_row == 1 && columns == kColumns) {  // k runs along memory: transpose blocks of 16 columns x 16 pairs
    for (; 2 * (p + 16) <= depth; p += 16) {
      for (int j0 = 0; j0 < kColumns; j0 += 16) {
        __m512i block[16];
        for (int j = 0; j < 16; ++j) block[j] = _mm512_loadu_si512(b + (j0 + j) * g.b_col + 2 * p);
        transpose16(block);
        for (int q = 0; q < 16; ++q) _mm512_store_si512(panel + (p + q) * kColumns + j0, block[q]);
      }
    }
  } else if (g.b_col == 1 && columns == kColumns) {  // n runs along memory: interleave two rows
    const __m512i low = _mm512_set_epi32(0x002f000f, 0x002e000e, 0x002d000d, 0x002c000c, 0x002b000b, 0x002a000a, 0x00290009,
                                         0x00280008, 0x00270007, 0x00260006, 0x00250005, 0x00240004, 0x00230003, 0x00220002,
                                         0x00210001, 0x00200000);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (; 2 * (p + 1) <= depth; ++p) {
      const uint16_t *first = b + 2 * p * g.b_row, *second = first + g.b_row;
      for (int j = 0; j < kColumns; j += 32) {
        const __m512i x = _mm512_loadu_si512(first + j), y = _mm512_loadu_si512(second + j);
        _mm512_store_si512(panel + p * kColumns + j, _mm512_permutex2var_epi16(x, low, y));
        _mm512_store_si512(panel + p * kColumns + j + 16, _mm512_permutex2var_epi16(x, high, y));
      }
    }
  }
  for (; p < pairs; ++p)
    for (int64_t j = 0; j < kColumns; ++j)
      panel[p * kColumns + j] = j < columns && 2 * p < depth
                                  ? pair_of(b + 2 * p * g.b_row + j * g.b_col, g.b_row, 2 * p + 1 < depth)
                                  : 0u;
}

template <int R>
void block(const uint16_t* a, int64_t a_row, const uint32_t* panel, int64_t depth, float* c, int64_t c_stride,
           __mmask16 left, __mmask16 right, bool accumulate) {
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    sum[r][0] = accumulate ? _mm512_maskz_loadu_ps(left, c + r * c_stride) : _mm512_setzero_ps();
    sum[r][1] = accumulate ? _mm512_maskz_loadu_ps(right, c + r * c_stride + 16) : _mm512_setzero_ps();
  }
  const auto multiply = [&](int64_t p, auto pair_of_row) __attribute__((always_inline)) {
    const __m512bh b0 = (__m512bh)_mm512_load_si512(panel + p * kColumns);
    const __m512bh b1 = (__m512bh)_mm512_load_si512(panel + p * kColumns + 16);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(int32_t(pair_of_row(a + r * a_row + 2 * p)));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
    }
  };
  for (int64_t p = 0; p < depth / 2; ++p) multiply(p, [](const uint16_t* at) { return pair_of(at, 1, true); });
  if (depth % 2) multiply(depth / 2, [](const uint16_t* at) { return pair_of(at, 1, false); });
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
  int64_t cuts = panels < g.threads ? (g.threads + panels - 1) / panels : 1;  // of the rows, where panels are too few
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
      pack_b(g, k0, depth, (depth + 1) / 2, n0, columns, panel);
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
