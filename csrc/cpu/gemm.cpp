// Chooses the bf16 GEMM engine, and emulates the AMX one so that its packing and loops are tested everywhere.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/gemm_tiles.h"
#include "cpu/isa.h"
#include "math.h"
#if MMFAST_HAS_BF16_ENGINES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mmfast {

bool gemm_avx512bf16(const Bf16Gemm& gemm);
bool gemm_amx(const Bf16Gemm& gemm);

namespace {

struct EmulatedTiles {
  alignas(64) char tile[8][1024];

  template <int t>
  void zero() {
    memset(tile[t], 0, 1024);
  }
  template <int t>
  void load(const void* from, int64_t stride) {
    for (int r = 0; r < 16; ++r) memcpy(tile[t] + 64 * r, static_cast<const char*>(from) + r * stride, 64);
  }
  template <int t>
  void store(void* to, int64_t stride) {
    for (int r = 0; r < 16; ++r) memcpy(static_cast<char*>(to) + r * stride, tile[t] + 64 * r, 64);
  }
  template <int c, int a, int b>
  void multiply() {
    float sum[16][16];
    uint16_t left[16][32], right[16][32];
    memcpy(sum, tile[c], 1024), memcpy(left, tile[a], 1024), memcpy(right, tile[b], 1024);
    for (int m = 0; m < 16; ++m)
      for (int p = 0; p < 16; ++p)
        for (int n = 0; n < 16; ++n)
          sum[m][n] += from_bf16(left[m][2 * p]) * from_bf16(right[p][2 * n]) +
                       from_bf16(left[m][2 * p + 1]) * from_bf16(right[p][2 * n + 1]);
    memcpy(tile[c], sum, 1024);
  }
};

#if MMFAST_HAS_BF16_ENGINES
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // amx-bf16, amx-tile
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // Linux grants the tile registers on request
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::string find_engines() {
  std::string found;
  if (best_isa() == Isa::avx512) {
    if (has_amx()) found += "amx,";
    if (__builtin_cpu_supports("avx512bf16")) found += "avx512bf16,";
  }
  return found + "emulated";
}
#else
std::string find_engines() { return "emulated"; }
#endif

}  // namespace

const char* cpu_gemm_engines() {
  static const std::string engines = find_engines();
  return engines.c_str();
}

void cpu_gemm_bf16(const Bf16Gemm& g, const char* engine) {
  const std::string known = std::string(",") + cpu_gemm_engines() + ",", wanted = std::string(",") + engine + ",";
  if (known.find(wanted) == std::string::npos)
    throw std::invalid_argument(std::string("this CPU has no bf16 GEMM engine ") + engine + "; it has " +
                                cpu_gemm_engines());
  if (g.m == 0 || g.n == 0 || g.k == 0) throw std::invalid_argument("cpu_gemm_bf16: an empty matrix");
  bool done = false;
#if MMFAST_HAS_BF16_ENGINES
  if (!strcmp(engine, "avx512bf16")) {
    if (g.a_col != 1) throw std::invalid_argument("cpu_gemm_bf16: avx512bf16 reads A along k, its column stride must be 1");
    done = gemm_avx512bf16(g);
  }
  if (!strcmp(engine, "amx")) done = gemm_amx(g);
#endif
  if (!strcmp(engine, "emulated")) done = gemm_tiles<EmulatedTiles>(g);
  if (!done) throw std::runtime_error("cpu_gemm_bf16: out of memory");
}

}  // namespace mmfast
