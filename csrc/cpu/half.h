// The two 16-bit floats of torch as bit patterns, converted by integer arithmetic: `_Float16` needs GCC 12, and a libgcc
// that exports its conversions (symbols of version GCC_12.0.0). To the bit what F16C instructions give: rounded to the
// nearest, ties to even; subnormals kept; a NaN keeps the upper bits of its payload and becomes quiet.
#pragma once

#include "math.h"

namespace mmfast {

struct BFloat16 {
  uint16_t bits;
  explicit operator float() const { return from_bf16(bits); }
  static BFloat16 from(float value) { return {to_bf16(value)}; }
};

struct Float16 {
  uint16_t bits;

  explicit operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude > 0x7c00) return float_of(sign | 0x7fc00000 | magnitude << 13);  // NaN
    if (magnitude == 0x7c00) return float_of(sign | 0x7f800000);
    if (magnitude < 0x400) return float_of(sign | bits_of(float(magnitude) * 0x1p-24f));  // subnormal
    return float_of(sign | ((magnitude << 13) + (uint32_t(112) << 23)));
  }

  static Float16 from(float value) {
    const uint32_t wide = bits_of(value), sign = wide >> 16 & 0x8000, magnitude = wide & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) {
      half = 0x7e00 | (magnitude >> 13 & 0x3ff);  // NaN
    } else if (magnitude >= 0x477ff000) {
      half = 0x7c00;  // 65520 and above round to infinity
    } else if (magnitude >= 0x38800000) {
      half = (magnitude - (uint32_t(112) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    } else if (magnitude > 0x33000000) {
      // A subnormal half: its unit is 2^-24, so the significand of 24 bits loses 126 - exponent of them.
      const uint32_t shift = 126 - (magnitude >> 23), whole = (magnitude & 0x7fffff) | 0x800000;
      half = (whole + (uint32_t(1) << (shift - 1)) - 1 + (whole >> shift & 1)) >> shift;
    } else {
      half = 0;  // 2^-25 and below: a tie with zero goes to zero
    }
    return {uint16_t(sign | half)};
  }
};

}  // namespace mmfast
