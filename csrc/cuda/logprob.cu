// The folds over one tile of logits, as mmfast/ops/head/folds.py describes them (letters and statistics are there).
#include "cuda/common.cuh"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kFoldThreads = 512;
constexpr int kFewRows = 132;  // no more rows than multiprocessors: a block then has one for itself, and more threads
constexpr int kGradientThreads = 256;

// --- forward: one block a row.
// What a variant does beside the maximum, the sum and the target's logit. kSoftcap looks for a bias itself; kExtras is
// any of the other statistics; kCentered writes E (z - center) too.
enum : int { kBias = 1, kSoftcap = 2, kExtras = 4, kCentered = 8, kWrite = 16 };
constexpr float kLog2e = 1.44269504f;
// bf16 and fp32 have 8 bits of exponent, so a row's exponentials may be taken against any base near its maximum: the
// base that the row already has, up to this many nats below (their squares, too, then fit fp32).
constexpr float kReach = 30;

struct Forward {
  const void* tile;
  const float* bias;
  const int64_t* targets;
  int64_t stride, first, rows;
  int width;
  LogitMap<float> map;
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

// One row of a tile. z is a logit with bias and softcap, before the temperature. A warp takes kChunk columns at a time;
// a thread has kLoads loads of 16 bytes in flight.
template <class T, int F>
struct Row {
  static constexpr int kVec = 16 / sizeof(T), kLoads = (F & (kSoftcap | kCentered) ? 8 : 16) / kVec;
  static constexpr int kApart = kWarp * kVec, kChunk = kApart * kLoads;
  const Forward& fold;
  const T* logits;
  int y;  // the target's column, or -1
  float* target;

  __device__ __forceinline__ float mapped(float z) const {
    return F & kSoftcap ? fold.map.softcap * tanh_of(z * fold.map.inv_softcap) : z;
  }
  __device__ __forceinline__ void read(int at, float (&z)[kVec]) const {
    load<kVec>(logits + at, z);
    if ((F & kBias) || ((F & kSoftcap) && fold.bias)) {
      float bias[kVec];
      load<kVec>(fold.bias + at, bias);
#pragma unroll
      for (int j = 0; j < kVec; ++j) z[j] += bias[j];
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) z[j] = mapped(z[j]);
  }
  // The same where the target or the row's end may be: they are -inf.
  __device__ __forceinline__ void read_checked(int at, float (&z)[kVec], float& total) const {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      z[j] = -INFINITY;
      if (at + j >= fold.width) continue;
      const float x = to_acc(logits[at + j]);
      const float value = mapped((F & (kBias | kSoftcap)) && fold.bias ? x + fold.bias[at + j] : x);
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

// Blocks have so many threads, where a row has work for them: twice as many where rows are few. What needs more than 64
// registers cannot.
constexpr int most_threads(int flags) { return flags & (kSoftcap | kCentered) ? kFoldThreads : 2 * kFoldThreads; }

template <class T, class Out, int F>
__global__ void __launch_bounds__(most_threads(F)) fold_forward_kernel(const __grid_constant__ Forward fold) {
  using Logits = Row<T, F>;
  constexpr int N = Logits::kVec;
  constexpr bool kRounds = (F & kWrite) && !std::is_same_v<Out, float>;
  constexpr int kSums = F & kExtras ? 6 : kRounds ? 3 : 1;
  const int64_t t = blockIdx.x, U = fold.rows, target = fold.targets[t] - fold.first;
  float* const stats = fold.stats + t;
  auto stat = [&](Stat which) -> float& { return stats[which * U]; };
  const Logits row{fold, static_cast<const T*>(fold.tile) + t * fold.stride,
                   target >= 0 && target < fold.width ? int(target) : -1, &stat(kTarget)};
  Out* const out = static_cast<Out*>(fold.out) + t * fold.out_stride;
  Out* const out_z = static_cast<Out*>(fold.to.out_z) + t * fold.to.out_z_stride;
  const float scale = fold.map.inv_temperature;
  const bool begins = fold.first == 0;
  const float before = begins ? -INFINITY : stat(kBase);
  const bool seen = before > -INFINITY;

  auto maximum = [&](int end) {
    float top[1] = {-INFINITY}, ignored;
    row.each(end, ignored, [&](bool, int, const float(&z)[N]) {
#pragma unroll
      for (int j = 0; j < N; ++j) top[0] = fmaxf(top[0], z[j]);
    });
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
          const float tanh = fmaxf(z[j] * fold.map.inv_softcap, -1.0f);
          e[j] *= fmaf(-tanh, tanh, 1.0f);
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
  if (!begins) others = {stat(kMax), stat(kSum), stat(kSumZ), stat(kSquares)};
  float ratio = 1;
  if constexpr (kRounds)
    if (sums[2] > 0) ratio = sums[1] / sums[2];
  if constexpr (F & kExtras) {
    more.sz = sums[3] / kLog2e;
    more.s2 = sums[4];
    stat(kTotal) = (begins ? 0 : stat(kTotal)) + sums[5] * scale;
  }
  m = fmaxf(others.m, m);
  move_maximum(others, m);
  move_maximum(more, m);
  stat(kMax) = m;
  stat(kSum) = others.s + more.s;
  stat(kSumZ) = others.sz + more.sz;
  stat(kSquares) = others.s2 + more.s2;
  stat(kBase) = base;
  stat(kWritten) = (begins ? 0 : factor * stat(kWritten)) + sums[0] * ratio;
  if (begins && row.y < 0) stat(kTarget) = 0;
  if (F & kCentered) stat(kCenter) = center;
  if (fold.to.base) static_cast<float*>(fold.to.base)[t] = base;
}

// --- backward and finish: elementwise.
template <class A>
struct Fold {
  const A* bias;  // of the tile, or null
  const int64_t* targets;
  int64_t first;  // the tile's first column in the vocabulary
  int64_t rows, width;
  LogitMap<A> map;
};

// N mapped logits of one row from column `at` on; columns past the end are 0 and must not be used.
template <int N, class T, class A = acc_t<T>>
__device__ __forceinline__ void mapped(const Fold<A>& fold, const T* row, int64_t at, A (&z)[N]) {
  const int64_t left = fold.width - at;
  load_some<N>(row + at, left, z);
  if (fold.bias) {
    A bias[N];
    load_some<N>(fold.bias + at, left, bias);
#pragma unroll
    for (int j = 0; j < N; ++j) z[j] += bias[j];
  }
#pragma unroll
  for (int j = 0; j < N; ++j) z[j] = map_logit(fold.map, z[j]);
}

// out = s_v e^(z - lse) (a + b (z - lse)), the target's entry d. Blocks (row, column block).
template <class T, class Out, int N>
__global__ void __launch_bounds__(kGradientThreads) fold_gradient_kernel(
    Fold<acc_t<T>> fold, const T* tile, int64_t tile_stride, const acc_t<T>* lse, const acc_t<T>* a, const acc_t<T>* b,
    const acc_t<T>* d, Out* out, int64_t out_stride) {  // out may be the tile: no __restrict__
  using A = acc_t<T>;
  const int64_t t = blockIdx.x, at = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (at >= fold.width) return;
  const int64_t y = fold.targets[t] - fold.first;
  const A row_lse = lse[t], row_a = a[t], row_b = b ? b[t] : A(0), row_d = d[t];
  A z[N];
  mapped<N>(fold, tile + t * tile_stride, at, z);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const A logp = z[j] - row_lse, p = exp_or_zero(logp);
    const A g = p > 0 ? p * (row_a + row_b * logp) * slope_of(fold.map, z[j]) : p;
    z[j] = at + j == y ? row_d : g;
  }
  store_some<N>(out + t * out_stride + at, fold.width - at, z);
}

// kept[t, v] *= scale[t, v / tile_width], then kept[t, y_t] = entry[t]. Blocks (row, tile); a tile whose scale is 1 is left.
template <class T, int N>
__global__ void __launch_bounds__(kGradientThreads) fold_finish_kernel(
    T* kept, int64_t width, const acc_t<T>* scale, int64_t tile_width, const int64_t* targets, const acc_t<T>* entry) {
  using A = acc_t<T>;
  const int64_t t = blockIdx.x, first = blockIdx.y * tile_width;
  const int64_t end = first + tile_width < width ? first + tile_width : width, y = targets[t];
  T* row = kept + t * width;
  const A f = scale[t * gridDim.y + blockIdx.y];
  if (f != A(1))
    for (int64_t at = first + int64_t(threadIdx.x) * N; at < end; at += int64_t(blockDim.x) * N) {
      A x[N];
      load_some<N>(row + at, end - at, x);
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = at + j == y ? entry[t] : x[j] * f;
      store_some<N>(row + at, end - at, x);
    }
  else if (threadIdx.x == 0 && first <= y && y < end)
    row[y] = from_acc<T>(entry[t]);
}

// run(N): 8 elements at a time where addresses and strides allow it.
template <class F>
void in_units(bool fits, F&& run) {
  if (fits) run(std::integral_constant<int, 8>{});
  else run(std::integral_constant<int, 1>{});
}

template <class A>
Fold<A> fold_of(const LogitTile& tile) {
  return {static_cast<const A*>(tile.bias), tile.targets, tile.first, tile.rows, tile.width,
          LogitMap<A>::of(tile.softcap, tile.temperature)};
}

// Calls body(T{}, Out{}) for the pairs of tile and output dtypes that occur: equal ones, and an fp32 tile whose output
// is the GEMM's compute dtype.
template <class F>
void with_types(const char* op, int tile, int out, F&& body) {
  with_float(op, out, [&](auto o) {
    using Out = decltype(o);
    if (tile == out) return body(Out{}, Out{});
    if constexpr (sizeof(Out) == 2)
      if (tile == kF32) return body(float{}, Out{});
    bad_dtype(op, tile);
  });
}

template <class T>
bool units_fit(const void* pointer, int64_t stride, int64_t n) {
  return !pointer || (aligned16(pointer) && stride % n == 0 && (n * sizeof(T)) % 16 == 0);
}
template <class T, class Out>
bool tile_fits(const LogitTile& tile, int64_t n) {
  return units_fit<T>(tile.logits, tile.stride, n) && units_fit<acc_t<T>>(tile.bias, 0, n) &&
         units_fit<Out>(tile.out, tile.out_stride, n);
}

template <class T, class Out, int F>
void queue_forward(const LogitTile& tile, void* stats, const FoldResults& to, uintptr_t stream) {
  constexpr int kVec = 16 / sizeof(T), kOutVec = 16 / sizeof(Out);
  const bool aligned = units_fit<T>(tile.logits, tile.stride, kVec) && units_fit<float>(tile.bias, 0, 4) &&
                       units_fit<Out>(tile.out, tile.out_stride, kOutVec) && units_fit<Out>(to.out_z, to.out_z_stride, kOutVec);
  const bool one_pass = !std::is_same_v<Out, __half> && tile.out != tile.logits;
  const Forward fold = {tile.logits, static_cast<const float*>(tile.bias), tile.targets, tile.stride, tile.first, tile.rows,
                        int(tile.width), LogitMap<float>::of(tile.softcap, tile.temperature), aligned, one_pass,
                        static_cast<float*>(stats), tile.out, tile.out_stride, to};
  auto run = [&](auto kernel, int flags) {
    const int most = tile.rows > kFewRows ? kFoldThreads : most_threads(flags);
    int threads = kWarp;
    while (threads < most && threads * 16 < tile.width) threads *= 2;
    launch("linear_logprob", kernel, unsigned(tile.rows), threads, stream, fold);
  };
  if (tile.softcap > 0) run(fold_forward_kernel<T, Out, F | kSoftcap>, F | kSoftcap);
  else if (tile.bias) run(fold_forward_kernel<T, Out, F | kBias>, F);
  else run(fold_forward_kernel<T, Out, F>, F);
}
}  // namespace

void cuda_fold_forward(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total,
                       const FoldResults& to, uintptr_t stream) {
  const char* op = "linear_logprob";
  if (tile.rows == 0) return;
  if (tile.width > 1 << 30) throw std::invalid_argument("linear_logprob: a tile of more than 2^30 columns");
  const bool extras = entropy || squares || total;
  if (!tile.out) {
    with_float(op, tile.dtype, [&](auto x) {
      using T = decltype(x);
      if (extras) queue_forward<T, float, kExtras>(tile, stats, to, stream);
      else queue_forward<T, float, 0>(tile, stats, to, stream);
    });
  } else {
    if (tile.dtype != kF32) bad_dtype(op, tile.dtype);  // nothing is written beside a 16-bit tile
    with_float(op, tile.out_dtype, [&](auto y) {
      using Out = decltype(y);
      if (to.out_z) queue_forward<float, Out, kWrite | kExtras | kCentered>(tile, stats, to, stream);
      else if (extras) queue_forward<float, Out, kWrite | kExtras>(tile, stats, to, stream);
      else queue_forward<float, Out, kWrite>(tile, stats, to, stream);
    });
  }
}

void cuda_fold_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d,
                        uintptr_t stream) {
  if (tile.rows == 0 || tile.width == 0) return;
  with_types("linear_logprob", tile.dtype, tile.out_dtype, [&](auto x, auto y) {
    using T = decltype(x);
    using Out = decltype(y);
    using A = acc_t<T>;
    auto run = [&](auto n) {
      constexpr int N = decltype(n)::value;
      const dim3 grid(unsigned(tile.rows), blocks_for(tile.width, int64_t(kGradientThreads) * N));
      launch("linear_logprob", fold_gradient_kernel<T, Out, N>, grid, kGradientThreads, stream, fold_of<A>(tile),
             static_cast<const T*>(tile.logits), tile.stride, static_cast<const A*>(lse), static_cast<const A*>(a),
             static_cast<const A*>(b), static_cast<const A*>(d), static_cast<Out*>(tile.out), tile.out_stride);
    };
    in_units(tile_fits<T, Out>(tile, 8), run);
  });
}

void cuda_fold_finish(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows,
                      int64_t width, int64_t tile_width, int dtype, uintptr_t stream) {
  if (rows == 0 || width == 0) return;
  const unsigned tiles = blocks_for(width, tile_width);
  with_float("linear_logprob", dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    auto run = [&](auto n) {
      launch("linear_logprob", fold_finish_kernel<T, decltype(n)::value>, dim3(unsigned(rows), tiles),
             kGradientThreads, stream, static_cast<T*>(kept), width, static_cast<const A*>(scale), tile_width, targets,
             static_cast<const A*>(entry));
    };
    in_units(units_fit<T>(kept, width, 8) && tile_width % 8 == 0, run);
  });
}

}  // namespace mmfast
