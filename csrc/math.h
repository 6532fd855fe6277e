// Scalar maths shared by the CPU and the CUDA folds, so that both halves compute the same thing.
// Host functions are static and always inlined: *.isa.cpp files are compiled once an instruction set, and the linker
// must not merge their copies. They are branch-free, so that loops over them vectorise.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MMFAST_HD static __host__ __device__ __forceinline__
#else
#define MMFAST_HD static inline __attribute__((always_inline))
#endif

namespace mmfast {

MMFAST_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
MMFAST_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// exp for arguments up to 88. Below -87 it is exactly zero: denormals would make a fold many times slower. NaN stays NaN.
MMFAST_HD float exp_or_zero(float x) {
#ifdef __CUDA_ARCH__
  return x < -87.0f ? 0.0f : expf(x);
#else
  const float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float safe = whole > -126.0f ? whole : -126.0f;
  return x < -87.0f ? 0.0f : p * float_of(uint32_t(static_cast<int32_t>(safe) + 127) << 23);
#endif
}
MMFAST_HD double exp_or_zero(double x) { return x < -700.0 ? 0.0 : ::exp(x); }

MMFAST_HD float tanh_of(float x) {
  const float size = x < 0 ? -x : x;
  const float t = exp_or_zero(-2.0f * size);
  const float large = (1.0f - t) / (1.0f + t);
  const float q = x * x;
  const float series = 1.0f + q * (-1.0f / 3 + q * (2.0f / 15 + q * (-17.0f / 315 + q * (62.0f / 2835 - q * (1382.0f / 155925)))));
  return size < 0.3f ? x * series : (x < 0 ? -large : large);
}
MMFAST_HD double tanh_of(double x) { return ::tanh(x); }

// What happens to a raw logit: softcap * tanh(z / softcap), then / temperature. softcap 0 means none.
template <typename T>
struct LogitMap {
  T softcap, inv_softcap, inv_temperature, to_tanh;  // to_tanh = temperature / softcap: mapped logit -> tanh

  MMFAST_HD LogitMap of(double softcap, double temperature) {
    return {T(softcap), softcap ? T(1 / softcap) : T(0), T(1 / temperature), softcap ? T(temperature / softcap) : T(0)};
  }
};
// d(mapped)/d(raw) without the constant 1 / temperature, from the mapped logit. A logit of -inf has slope 0 under a cap.
template <typename T>
MMFAST_HD T slope_of(const LogitMap<T>& map, T mapped) {
  const T t = mapped * map.to_tanh;
  return map.softcap > 0 ? T(1) - t * t : T(1);
}

// Running sums over the columns other than the target, relative to their maximum m:
// s = sum e^(z-m), sz = sum e^(z-m) (z-m), s2 = sum e^(2(z-m)).
template <typename T>
struct OthersSum {
  T m, s, sz, s2;
};
// The reference a row's exponentials are taken against; rows that saw nothing finite yet use 0.
template <typename T>
MMFAST_HD T finite_or_zero(T m) {
  return m > -INFINITY ? m : T(0);
}
// Moves the sums to a maximum `m` that is not below a.m; returns the factor e^(a.m - m) (1 where nothing was summed).
template <typename T>
MMFAST_HD T move_maximum(OthersSum<T>& a, T m) {
  if (!(a.m > -INFINITY)) {
    a.m = m;
    return T(1);
  }
  const T drop = a.m - m;
  const T factor = exp_or_zero(drop);
  a.sz = factor > 0 ? factor * (a.sz + a.s * drop) : T(0);
  a.s *= factor;
  a.s2 *= factor * factor;
  a.m = m;
  return factor;
}

// bfloat16 by its bits, rounded to nearest even; a NaN keeps the upper bits of its payload and becomes quiet.
MMFAST_HD float from_bf16(uint16_t x) { return float_of(uint32_t(x) << 16); }
MMFAST_HD uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t(x != x ? (bits >> 16) | 0x40u : rounded);
}

}  // namespace mmfast
