// The tile GEMM on the AMX unit (Sapphire Rapids and later).
#include "cpu/gemm_tiles.h"

namespace mmfast {
namespace {

struct AmxTiles {
  AmxTiles() {
    alignas(64) uint8_t config[64] = {1};  // palette 1; 8 tiles of 16 rows x 64 bytes
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = 64;
      config[48 + t] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~AmxTiles() { asm volatile("tilerelease"); }
  template <int t>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(t));
  }
  template <int t>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(t) : "memory");
  }
  template <int c, int a, int b>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

}  // namespace

bool gemm_amx(const Bf16Gemm& g) { return gemm_tiles<AmxTiles>(g); }

}  // namespace mmfast
