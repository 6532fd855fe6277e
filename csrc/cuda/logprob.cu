// The folds over one tile of logits, as mmfast/ops/head/folds.py describes them (letters and statistics are there).
#include "cuda/common.cuh"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kSMs = 132;  // about: a block has fewer threads the more blocks can share a multiprocessor

// --- forward: one block a row.
// What a variant does beside the maximum, the sum and the target's logit. kSoftcap looks for a bias itself; kExtras is
// any of the other statistics; kCentered writes E (z - center) too.
enum : int { kBias = 1, kSoftcap = 2, kExtras = 4, kCentered = 8, kWrite = 16 };
constexpr float kLog2e = 1.44269504f;
// bf16 and fp32 have 8 bits of exponent, so a row's exponentials may be taken against any base near its maximum: the
// base that the row already has, up to this many nats below (their squares, too, then fit fp32).
constexpr float kReach = 30;

struct Fold {
  const void* tile;
  const float* bias;
  const int64_t* targets;
  int64_t stride, first, rows;
  int width;
  LogitMap<float> map;
  float to_base2;  // of the softcap's e^2|x|: an exponent of 2
  bool aligned;   // rows of the tile, the bias and the outputs may be moved by 16 bytes
  bool one_pass;  // exponentials may be taken before the maximum is known, and their logits will still be there
  float* stats;
  void* out;
  int64_t out_stride;
  FoldResults to;
};

__device__ __forceinline__ float exp2_approx(float x) {  // 2 units in the last place, 0 below 2^-126, NaN stays NaN
#ifdef MMFAST_EMULATE
  return x < -126.0f ? 0.0f : std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ float reciprocal_approx(float x) {  // 1 unit in the last place; 0 of infinity
#ifdef MMFAST_EMULATE
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// The address of a row, kept in registers: from a sum the compiler would make it anew for each load.
template <class T>
__device__ __forceinline__ T* row_at(T* first, int64_t offset) {
  T* row = first + offset;
#ifndef MMFAST_EMULATE
  asm("" : "+l"(row));
  __builtin_assume(__isGlobal(row));
#endif
  return row;
}

// Writes N neighbours, and adds what was written, rounding included, to `sum`.
__device__ __forceinline__ __nv_bfloat162 pair_of(float a, float b, __nv_bfloat16) { return __floats2bfloat162_rn(a, b); }
__device__ __forceinline__ __half2 pair_of(float a, float b, __half) { return __floats2half2_rn(a, b); }
__device__ __forceinline__ void add_pair(uint32_t bits, float& sum, __nv_bfloat16) {
  const uint32_t low = bits << 16, high = bits & 0xffff0000u;
  float a, b;
  memcpy(&a, &low, sizeof a);
  memcpy(&b, &high, sizeof b);
  sum += a;
  sum += b;
}
__device__ __forceinline__ void add_pair(uint32_t bits, float& sum, __half) {
  __half2 pair;
  memcpy(&pair, &bits, sizeof pair);
  sum += __low2float(pair);
  sum += __high2float(pair);
}
template <int N, class Out>
__device__ __forceinline__ void put(Out* to, const float (&x)[N], float& sum) {
  Vec<uint32_t, N / 2> bits;
#pragma unroll
  for (int j = 0; j < N / 2; ++j) {
    const auto pair = pair_of(x[2 * j], x[2 * j + 1], Out{});
    memcpy(&bits.v[j], &pair, sizeof pair);
    add_pair(bits.v[j], sum, Out{});
  }
  *reinterpret_cast<Vec<uint32_t, N / 2>*>(to) = bits;
}
template <int N>
__device__ __forceinline__ void put(float* to, const float (&x)[N], float&) {
  store<N>(to, x);
}

// One row of a tile. z is a logit with bias, before the temperature. A warp takes kChunk columns at a time; a
// thread has kLoads loads of 16 bytes in flight.
template <class T, int F>
struct Row {
  static constexpr int kVec = 16 / sizeof(T), kLoads = (F & (kSoftcap | kCentered) ? 8 : 16) / kVec;
  static constexpr int kApart = kWarp * kVec, kChunk = kApart * kLoads;
  const Fold& fold;
  const T* logits;
  const float* bias;  // or null
  int y;  // the target's column, or -1
  float* target;

  static __device__ __forceinline__ Row of(const Fold& fold, int64_t t, float* target) {
    const int64_t y = fold.targets[t] - fold.first;
    return {fold, row_at(static_cast<const T*>(fold.tile), t * fold.stride), F & (kBias | kSoftcap) ? row_at(fold.bias, 0) : nullptr,
            y >= 0 && y < fold.width ? int(y) : -1, target};
  }
  // The softcap: tanh |x| is 1 - 2r and its slope 4r (1 - r), r = 1 / (1 + e^2|x|) by the hardware's functions. Returns the
  // slope, 0 where z is infinite. tests/kernels/test_logprob_softcap.py bounds the errors.
  __device__ __forceinline__ float cap(float& z) const {
    if (!(F & kSoftcap)) return 1.0f;
    const float r = reciprocal_approx(1.0f + exp2_approx(fabsf(z) * fold.to_base2));
    z = copysignf(fmaf(-2.0f * fold.map.softcap, r, fold.map.softcap), z);
    return 4.0f * fmaf(-r, r, r);
  }
  // What `each` hands over: without the softcap, but with it where it has checked. Returns the softcap's slope.
  __device__ __forceinline__ float finish(float& z, bool checked) const {
    if (!(F & kSoftcap) || !checked) return cap(z);
    const float tanh = fmaxf(z * fold.map.inv_softcap, -1.0f);  // also where z is -inf
    return fmaf(-tanh, tanh, 1.0f);
  }
  __device__ __forceinline__ void read(int at, float (&z)[kVec]) const {
    load<kVec>(logits + at, z);
    if ((F & kBias) || ((F & kSoftcap) && bias)) {
      float more[kVec];
      load<kVec>(bias + at, more);
#pragma unroll
      for (int j = 0; j < kVec; ++j) z[j] += more[j];
    }
  }
  // The same where the target or the row's end may be, which are -inf, and with the softcap.
  __device__ __forceinline__ void read_checked(int at, float (&z)[kVec], float& total) const {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      z[j] = -INFINITY;
      if (at + j >= fold.width) continue;
      float value = to_acc(logits[at + j]);
      if ((F & (kBias | kSoftcap)) && bias) value += bias[at + j];
      cap(value);
      if (F & kExtras) total += value;
      if (at + j == y) *target = value * fold.map.inv_temperature;
      else z[j] = value;
    }
  }
  // body(checked, column, z) for each vector of this thread in the columns before `end`. Only the chunk with the target,
  // the last one where it is not whole, and rows that no vector fits are looked at column by column.
  template <class Body>
  __device__ __forceinline__ void each(int end, float& total, Body&& body) const {
    const int step = blockDim.x / kWarp * kChunk, start = threadIdx.x / kWarp * kChunk;
    const int whole = fold.aligned ? end / kChunk * kChunk : 0, with_target = y - y % kChunk;
    const bool ours = y >= 0 && with_target < whole && (with_target - start) % step == 0;
    const int lane = threadIdx.x % kWarp * kVec;
    for (int at = start, stop = ours ? with_target : whole;; at += step, stop = whole) {
      for (; at < stop; at += step) {
        float z[kLoads][kVec];
#pragma unroll
        for (int k = 0; k < kLoads; ++k) read(at + lane + k * kApart, z[k]);
#pragma unroll
        for (int k = 0; k < kLoads; ++k) body(false, at + lane + k * kApart, z[k]);
      }
      if (at >= end) return;
#pragma unroll 1
      for (int k = 0; k < kLoads; ++k) {
        float z[kVec];
        read_checked(at + lane + k * kApart, z, total);
        body(true, at + lane + k * kApart, z);
      }
    }
  }
};

// 1,024 threads may have 64 registers each; what needs more has blocks of at most 512.
constexpr int most_threads(int flags) { return flags & (kSoftcap | kCentered) ? 512 : 1024; }

template <class T, class Out, int F>
__global__ void __launch_bounds__(most_threads(F), 1) fold_forward_kernel(const __grid_constant__ Fold fold) {
  using Logits = Row<T, F>;
  constexpr int N = Logits::kVec;
  constexpr bool kRounds = (F & kWrite) && !std::is_same_v<Out, float>;
  constexpr int kSums = F & kExtras ? 6 : kRounds ? 3 : 1;
  const int64_t t = blockIdx.x, U = fold.rows;
  float* const stats = fold.stats + t;
  auto stat = [&](Stat which) -> float& { return stats[which * U]; };
  const Logits row = Logits::of(fold, t, &stat(kTarget));
  Out* const out = row_at(static_cast<Out*>(fold.out), t * fold.out_stride);
  Out* const out_z = static_cast<Out*>(fold.to.out_z) + t * fold.to.out_z_stride;
  const float scale = fold.map.inv_temperature;
  const bool begins = fold.first == 0;
  const float before = begins ? -INFINITY : stat(kBase);
  __shared__ float earlier[kStats];  // on their way meanwhile; the first reduction waits. The target's is written below
  if (!begins && threadIdx.x < kStats && threadIdx.x != kTarget) earlier[threadIdx.x] = stat(Stat(threadIdx.x));
  const bool seen = before > -INFINITY;

  auto maximum = [&](int end) {
    float top[1] = {-INFINITY}, uncapped = -INFINITY, ignored;
    row.each(end, ignored, [&](bool checked, int, const float(&z)[N]) {
      float& highest = (F & kSoftcap) && !checked ? uncapped : top[0];
#pragma unroll
      for (int j = 0; j < N; ++j) highest = fmaxf(highest, z[j]);
    });
    if (uncapped > -INFINITY) row.cap(uncapped), top[0] = fmaxf(top[0], uncapped);
    block_reduce<1>(top, Max());
    return top[0] * scale;
  };

  // The exponentials of the others against `base`, written, and their sums: e; what was written, and the same before
  // it was rounded; e (z - base) / ln 2; e^2; z over all columns. Returns the maximum.
  float sums[kSums];
  auto exponentials = [&](int end, float base, bool write, float center) {
    float top[1] = {-INFINITY}, s = 0, written = 0, exact = 0, sz = 0, s2 = 0, total = 0, ignored;
    row.each(end, total, [&](bool checked, int at, float(&z)[N]) {
      float e[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float slope = row.finish(z[j], checked);
        top[0] = fmaxf(top[0], z[j]);
        const float x = fmaf(z[j], scale, -base) * kLog2e;
        const float finite = fmaxf(x, -126.0f);  // 0 * inf must be 0; a NaN is in e
        e[j] = exp2_approx(x);
        s += e[j];
        if (F & kExtras) {
          sz = fmaf(e[j], finite, sz);
          s2 = fmaf(e[j], e[j], s2);
          if (!checked) total += z[j];
        }
        if ((F & kWrite) && (F & kSoftcap)) {
          e[j] *= slope;
          exact += e[j];
        }
        if (F & kCentered) z[j] = e[j] * fmaf(finite, 1 / kLog2e, base - center);
      }
      if (!(F & kWrite) || ((F & kCentered) && !write)) return;
      if (!checked) {
        put<N>(out + at, e, written);
        if (F & kCentered) put<N>(out_z + at, z, ignored);
      } else {
        for (int j = 0; j < N && at + j < fold.width; ++j) {
          out[at + j] = from_acc<Out>(e[j]);
          written += to_acc(from_acc<Out>(e[j]));
          if (F & kCentered) out_z[at + j] = from_acc<Out>(z[j]);
        }
      }
    });
    block_reduce<1>(top, Max());
    const float all[6] = {s, written, F & kSoftcap ? exact : s, sz, s2, total};
#pragma unroll
    for (int k = 0; k < kSums; ++k) sums[k] = all[k];
    block_reduce<kSums>(sums, Sum());
    return top[0] * scale;
  };

  // A row without a base takes the maximum of its first columns for one; where one pass will not do, of them all.
  const int first = int(blockDim.x) * 16;
  const int probe = fold.one_pass && first < fold.width ? first : fold.width;
  float base = before, center = F & kCentered && seen ? stat(kCenter) : 0, m;
  if (!fold.one_pass || !seen) base = fmaxf(before, maximum(probe));
  for (bool centered = !(F & kCentered) || seen;;) {
    const float against = finite_or_zero(base);
    m = exponentials(centered ? fold.width : probe, against, centered, center);
    if constexpr (F & kCentered)
      if (!centered) {
        center = against + (sums[0] > 0 ? sums[3] / kLog2e / sums[0] : 0.0f);
        centered = true;
        continue;
      }
    if (!(m > base + kReach) && (base > -INFINITY || !(m > -INFINITY))) break;
    if (!seen) center = m;
    base = m;  // it lies too far above: once more
  }

  const float factor = seen && base != before ? exp_or_zero(before - base) : 1.0f;
  if (fold.to.sums && factor != 1.0f) {
    float* const to = static_cast<float*>(fold.to.sums) + t * fold.to.sums_stride;
    for (int64_t i = threadIdx.x; i < fold.to.sums_width; i += blockDim.x) to[i] *= factor;
  }
  if (threadIdx.x) return;
  OthersSum<float> others = {-INFINITY, 0, 0, 0}, more = {base, sums[0], 0, 0};
  if (!begins) others = {earlier[kMax], earlier[kSum], earlier[kSumZ], earlier[kSquares]};
  float ratio = 1;
  if constexpr (kRounds)
    if (sums[2] > 0) ratio = sums[1] / sums[2];
  if constexpr (F & kExtras) {
    more.sz = sums[3] / kLog2e;
    more.s2 = sums[4];
    stat(kTotal) = (begins ? 0 : earlier[kTotal]) + sums[5] * scale;
  }
  m = fmaxf(others.m, m);
  move_maximum(others, m);
  move_maximum(more, m);
  stat(kMax) = m;
  stat(kSum) = others.s + more.s;
  stat(kSumZ) = others.sz + more.sz;
  stat(kSquares) = others.s2 + more.s2;
  stat(kBase) = base;
  stat(kWritten) = (begins ? 0 : factor * earlier[kWritten]) + sums[0] * ratio;
  if (begins && row.y < 0) stat(kTarget) = 0;
  if (F & kCentered) stat(kCenter) = center;
  if (fold.to.base) static_cast<float*>(fold.to.base)[t] = base;
}

// --- backward and finish.
// out = s_v e^(z - lse) (a + b (z - lse)), the target's entry d. It may be the tile: no __restrict__.
template <class T, class Out, int F>
__global__ void __launch_bounds__(512, 1) fold_gradient_kernel(const __grid_constant__ Fold fold, const float* lse,
                                                                     const float* a, const float* b, const float* d) {
  using Logits = Row<T, F>;
  constexpr int N = Logits::kVec;
  const int64_t t = blockIdx.x;
  float ignored;
  const Logits row = Logits::of(fold, t, &ignored);
  Out* const out = row_at(static_cast<Out*>(fold.out), t * fold.out_stride);
  const float scale = fold.map.inv_temperature, base = lse[t], at_zero = a[t], slope = b ? b[t] : 0.0f, entry = d[t];
  row.each(fold.width, ignored, [&](bool checked, int at, float(&z)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float bend = row.finish(z[j], checked), logp = fmaf(z[j], scale, -base);
      const float g = exp2_approx(logp * kLog2e) * fmaf(slope, fmaxf(logp, -87.0f), at_zero);  // 0 * inf must be 0
      z[j] = F & kSoftcap ? g * bend : g;
    }
    if (!checked) put<N>(out + at, z, ignored);
    else
      for (int j = 0; j < N && at + j < fold.width; ++j) out[at + j] = from_acc<Out>(at + j == row.y ? entry : z[j]);
  });
}

template <class T>
bool units_fit(const void* pointer, int64_t stride, int64_t n) {
  return !pointer || (aligned16(pointer) && stride % n == 0 && (n * sizeof(T)) % 16 == 0);
}

// Queues, a block a row, what `kernel` makes of the flags for this tile's bias and softcap.
template <int F>
using Flags = std::integral_constant<int, F>;
template <class T, class Out, class Kernel, class... Args>
void queue(const LogitTile& tile, void* stats, const FoldResults& to, uintptr_t stream, int flags, Kernel kernel, Args... args) {
  if (tile.rows == 0) return;
  if (tile.width > 1 << 30) throw std::invalid_argument("linear_logprob: a tile of more than 2^30 columns");
  constexpr int kOutVec = 16 / sizeof(Out);
  const bool aligned = units_fit<T>(tile.logits, tile.stride, 16 / sizeof(T)) && units_fit<float>(tile.bias, 0, 4) &&
                       units_fit<Out>(tile.out, tile.out_stride, kOutVec) && units_fit<Out>(to.out_z, to.out_z_stride, kOutVec);
  const bool one_pass = !std::is_same_v<Out, __half> && tile.out != tile.logits;
  const Fold fold = {tile.logits, static_cast<const float*>(tile.bias), tile.targets, tile.stride, tile.first, tile.rows,
                     int(tile.width), LogitMap<float>::of(tile.softcap, tile.temperature),
                     tile.softcap > 0 ? float(2 * 1.4426950408889634 / tile.softcap) : 0.0f, aligned, one_pass,
                     static_cast<float*>(stats), tile.out, tile.out_stride, to};
  if (tile.softcap > 0) flags |= kSoftcap;
  const int shared = tile.rows > 4 * kSMs ? 256 : tile.rows > kSMs ? 512 : 1024;
  const int most = shared < most_threads(flags) ? shared : most_threads(flags);
  int threads = kWarp;
  while (threads < most && threads * 16 < tile.width) threads *= 2;
  launch("linear_logprob",
         tile.softcap > 0 ? kernel(Flags<kSoftcap>{}) : tile.bias ? kernel(Flags<kBias>{}) : kernel(Flags<0>{}),
         unsigned(tile.rows), threads, stream, fold, args...);
}
template <class T, class Out, int F>
void queue_forward(const LogitTile& tile, void* stats, const FoldResults& to, uintptr_t stream) {
  queue<T, Out>(tile, stats, to, stream, F, [](auto more) { return fold_forward_kernel<T, Out, F | more()>; });
}
template <class T, class Out>
void queue_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d, uintptr_t stream) {
  using Number = const float*;
  queue<T, Out>(tile, nullptr, {}, stream, kCentered, [](auto more) { return fold_gradient_kernel<T, Out, more()>; },
                Number(lse), Number(a), Number(b), Number(d));
}
}  // namespace

void cuda_fold_forward(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total,
                       const FoldResults& to, uintptr_t stream) {
  const bool extras = entropy || squares || total;
  if (!tile.out) {
    with_float("linear_logprob", tile.dtype, [&](auto x) {
      using T = decltype(x);
      if (extras) queue_forward<T, float, kExtras>(tile, stats, to, stream);
      else queue_forward<T, float, 0>(tile, stats, to, stream);
    });
  } else {
    if (tile.dtype != kF32) bad_dtype("linear_logprob", tile.dtype);  // nothing is written beside a 16-bit tile
    with_float("linear_logprob", tile.out_dtype, [&](auto y) {
      using Out = decltype(y);
      if (to.out_z) queue_forward<float, Out, kWrite | kExtras | kCentered>(tile, stats, to, stream);
      else if (extras) queue_forward<float, Out, kWrite | kExtras>(tile, stats, to, stream);
      else queue_forward<float, Out, kWrite>(tile, stats, to, stream);
    });
  }
}

void cuda_fold_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d,
                        uintptr_t stream) {
  // The output has the tile's dtype, or the GEMM's beside an fp32 tile.
  with_float("linear_logprob", tile.out_dtype, [&](auto y) {
    using Out = decltype(y);
    if (tile.dtype == kF32) queue_gradient<float, Out>(tile, lse, a, b, d, stream);
    else if (tile.dtype == tile.out_dtype) queue_gradient<Out, Out>(tile, lse, a, b, d, stream);
    else bad_dtype("linear_logprob", tile.dtype);
  });
}

}  // namespace mmfast
