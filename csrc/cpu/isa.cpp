#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "ops.h"

namespace mmfast {

static Isa detect() {
#if MMFAST_HAS_X86_ISAS
  __builtin_cpu_init();
  Isa found = Isa::baseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = Isa::avx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    found = Isa::avx512;
  if (const char* cap = std::getenv("MMFAST_CPU")) {
    if (!std::strcmp(cap, "baseline")) return Isa::baseline;
    if (!std::strcmp(cap, "avx2") && found >= Isa::avx2) return Isa::avx2;
  }
  return found;
#else
  return Isa::baseline;
#endif
}

Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* cpu_isa() {
  return best_isa() == Isa::avx512 ? "avx512" : best_isa() == Isa::avx2 ? "avx2" : "baseline";
}

}  // namespace mmfast
