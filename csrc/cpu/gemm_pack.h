// What the bf16 GEMM engines share: panels of B as pairs along k, and a scratch buffer.
// Everything is static: the engines' files are compiled with different instruction sets.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#include "ops.h"

namespace mmfast {
namespace {

struct Scratch {
  explicit Scratch(int64_t bytes) : data(static_cast<char*>(::aligned_alloc(64, (bytes + 4095) / 4096 * 4096))) {}
  ~Scratch() { ::free(data); }
  Scratch(const Scratch&) = delete;
  char* data;
};

inline uint32_t pair_of(const uint16_t* from, int64_t stride, bool both) {
  return uint32_t(from[0]) | (both ? uint32_t(from[stride]) << 16 : 0u);
}

#ifdef __AVX512BW__
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
#endif

// panel[p][j] = the pair (B[k0 + 2p, n0 + j], B[k0 + 2p + 1, n0 + j]), zero outside k < depth and j < columns.
// p runs over `pairs`, j over kWidth.
template <int kWidth>
void pack_b(const Bf16Gemm& g, int64_t k0, int64_t depth, int64_t pairs, int64_t n0, int64_t columns, uint32_t* panel) {
  const uint16_t* b = g.b + k0 * g.b_row + n0 * g.b_col;
  int64_t p = 0;
#ifdef __AVX512BW__
  if (g.b_row == 1 && columns == kWidth) {  // k runs along memory: transpose blocks of 16 columns x 16 pairs
    for (; 2 * (p + 16) <= depth; p += 16) {
      for (int j0 = 0; j0 < kWidth; j0 += 16) {
        __m512i block[16];
        for (int j = 0; j < 16; ++j) block[j] = _mm512_loadu_si512(b + (j0 + j) * g.b_col + 2 * p);
        transpose16(block);
        for (int q = 0; q < 16; ++q) _mm512_store_si512(panel + (p + q) * kWidth + j0, block[q]);
      }
    }
  } else if (g.b_col == 1 && columns == kWidth) {  // n runs along memory: interleave two rows
    const __m512i low = _mm512_set_epi32(0x002f000f, 0x002e000e, 0x002d000d, 0x002c000c, 0x002b000b, 0x002a000a, 0x00290009,
                                         0x00280008, 0x00270007, 0x00260006, 0x00250005, 0x00240004, 0x00230003, 0x00220002,
                                         0x00210001, 0x00200000);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (; 2 * (p + 1) <= depth; ++p) {
      const uint16_t *first = b + 2 * p * g.b_row, *second = first + g.b_row;
      for (int j = 0; j < kWidth; j += 32) {
        const __m512i x = _mm512_loadu_si512(first + j), y = _mm512_loadu_si512(second + j);
        _mm512_store_si512(panel + p * kWidth + j, _mm512_permutex2var_epi16(x, low, y));
        _mm512_store_si512(panel + p * kWidth + j + 16, _mm512_permutex2var_epi16(x, high, y));
      }
    }
  }
#endif
  for (; p < pairs; ++p)
    for (int64_t j = 0; j < kWidth; ++j)
      panel[p * kWidth + j] = j < columns && 2 * p < depth
                                  ? pair_of(b + 2 * p * g.b_row + j * g.b_col, g.b_row, 2 * p + 1 < depth)
                                  : 0u;
}

}  // namespace
}  // namespace mmfast
