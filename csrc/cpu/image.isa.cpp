// The inner loops of image resizing: 8-bit pixels times 22-bit fixed-point weights, exact in int32.
//
// A weight is high * 2048 + low with both parts in int16, so that one instruction multiplies pixels and weights of two
// taps and adds the pair. Rows of weights are padded with zeros to a multiple of four taps.
#include <cstdint>
#include <cstring>

#if MMFAST_ISA_LEVEL >= 2
#include <immintrin.h>
#endif

namespace mmfast {
namespace MMFAST_ISA {

namespace {
constexpr int kBits = 22, kSplit = 11;
constexpr int32_t kHalf = 1 << (kBits - 1);

inline uint8_t clip(int32_t sum) {
  const int32_t value = sum >> kBits;
  return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value);
}

#if MMFAST_ISA_LEVEL >= 2
// Four taps of an RGB row as pairs: lane 0 holds (R0 R1)(G0 G1)(B0 B1), lane 1 the same of taps 2 and 3.
inline __m256i four_pixels(const uint8_t* at) {
  const __m256i order = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
}

inline __m256i four_weights(const int16_t* at) {
  int64_t bits;
  std::memcpy(&bits, at, 8);
  return _mm256_permutevar8x32_epi32(_mm256_set1_epi64x(bits), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

// R rows at once share the weights. Up to 16 bytes are read from a pixel on.
template <int R>
inline void rows(const uint8_t* in, int64_t stride, const int32_t* bounds, const int16_t* low, const int16_t* high,
                 int64_t taps, int64_t begin, int64_t end, uint8_t* out, int64_t out_stride) {
  for (int64_t x = begin; x < end; ++x) {
    const int64_t count = bounds[2 * x + 1];
    const uint8_t* pixel = in + 3 * int64_t(bounds[2 * x]);
    const int16_t *lower = low + x * taps, *upper = high + x * taps;
    __m256i sum_low[R], sum_high[R];
    for (int r = 0; r < R; ++r) sum_low[r] = sum_high[r] = _mm256_setzero_si256();
    for (int64_t k = 0; k < count; k += 4) {
      const __m256i w_low = four_weights(lower + k), w_high = four_weights(upper + k);
      for (int r = 0; r < R; ++r) {
        const __m256i pixels = four_pixels(pixel + 3 * k + r * stride);
        sum_low[r] = _mm256_add_epi32(sum_low[r], _mm256_madd_epi16(pixels, w_low));
        sum_high[r] = _mm256_add_epi32(sum_high[r], _mm256_madd_epi16(pixels, w_high));
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m256i both = _mm256_add_epi32(sum_low[r], _mm256_slli_epi32(sum_high[r], kSplit));
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kBits);
      sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
      const int32_t rgb = _mm_cvtsi128_si32(sum);
      std::memcpy(out + r * out_stride + 3 * (x - begin), &rgb, 3);
    }
  }
}
#else
template <int R>
inline void rows(const uint8_t* in, int64_t stride, const int32_t* bounds, const int16_t* low, const int16_t* high,
                 int64_t taps, int64_t begin, int64_t end, uint8_t* out, int64_t out_stride) {
  for (int r = 0; r < R; ++r)
    for (int64_t x = begin; x < end; ++x) {
      const uint8_t* pixel = in + r * stride + 3 * int64_t(bounds[2 * x]);
      int32_t sum[3] = {kHalf, kHalf, kHalf};
      for (int64_t k = 0; k < bounds[2 * x + 1]; ++k) {
        const int32_t weight = high[x * taps + k] * (1 << kSplit) + low[x * taps + k];
        for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * k + c] * weight;
      }
      for (int c = 0; c < 3; ++c) out[r * out_stride + 3 * (x - begin) + c] = clip(sum[c]);
    }
}
#endif
}  // namespace

// Horizontal pass over `height` rows of RGB: columns [begin, end) of the output.
void image_rows(const uint8_t* in, int64_t stride, int64_t height, const int32_t* bounds, const int16_t* low,
                const int16_t* high, int64_t taps, int64_t begin, int64_t end, uint8_t* out) {
  const int64_t out_stride = 3 * (end - begin);
  int64_t y = 0;
  for (; y + 4 <= height; y += 4)
    rows<4>(in + y * stride, stride, bounds, low, high, taps, begin, end, out + y * out_stride, out_stride);
  for (; y < height; ++y)
    rows<1>(in + y * stride, stride, bounds, low, high, taps, begin, end, out + y * out_stride, out_stride);
}

// One output row of the vertical pass: `count` rows of `width` bytes.
void image_columns(const uint8_t* in, int64_t stride, const int16_t* low, const int16_t* high, int64_t count,
                   int64_t width, uint8_t* out) {
  int64_t at = 0;
#if MMFAST_ISA_LEVEL >= 2
  for (; at + 32 <= width; at += 32) {
    __m256i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_set1_epi32(kHalf);
    for (int64_t k = 0; k < count; ++k) {
      const __m256i weight = _mm256_set1_epi32(high[k] * (1 << kSplit) + low[k]);
      const uint8_t* row = in + k * stride + at;
      for (int i = 0; i < 4; ++i) {
        const __m256i pixels = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + 8 * i)));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_mullo_epi32(pixels, weight));
      }
    }
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_srai_epi32(sums[i], kBits);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), ordered);
  }
#endif
  constexpr int64_t kBlock = 128;
  while (at < width) {
    const int64_t n = width - at < kBlock ? width - at : kBlock;
    int32_t sums[kBlock];
    for (int64_t i = 0; i < n; ++i) sums[i] = kHalf;
    for (int64_t k = 0; k < count; ++k) {
      const int32_t weight = high[k] * (1 << kSplit) + low[k];
      const uint8_t* row = in + k * stride + at;
      for (int64_t i = 0; i < n; ++i) sums[i] += row[i] * weight;
    }
    for (int64_t i = 0; i < n; ++i) out[at + i] = clip(sums[i]);
    at += n;
  }
}

// RGB bytes to three planes of floats through a table of 256 a channel; the planes are `plane` floats apart.
void image_lookup(const uint8_t* in, int64_t pixels, const float* table, int64_t plane, float* out) {
  for (int64_t x = 0; x < pixels; ++x) {
    out[x] = table[in[3 * x]];
    out[x + plane] = table[256 + in[3 * x + 1]];
    out[x + 2 * plane] = table[512 + in[3 * x + 2]];
  }
}

}  // namespace MMFAST_ISA
}  // namespace mmfast
