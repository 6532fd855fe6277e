// Says whether this CPU has the bf16 GEMM (AVX512-BF16), and guards its call.
#include <stdexcept>

#include "cpu/isa.h"
#include "ops.h"

namespace mmfast {

bool gemm_avx512bf16(const Bf16Gemm& gemm);

bool cpu_has_gemm_bf16() {
#if MMFAST_HAS_BF16_GEMM
  return best_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void cpu_gemm_bf16(const Bf16Gemm& g) {
  if (!cpu_has_gemm_bf16()) throw std::invalid_argument("cpu_gemm_bf16: this CPU has no AVX512-BF16");
#if MMFAST_HAS_BF16_GEMM
  if (!gemm_avx512bf16(g)) throw std::runtime_error("cpu_gemm_bf16: out of memory");
#endif
}

}  // namespace mmfast
