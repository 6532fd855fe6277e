// The folds over one tile of logits, as mmfast/ops/head/folds.py describes them (letters and statistics are there).
// One block a row, which reads the row twice: the second time out of L1, or of L2 where the tile's rows are long.
#include "cuda/common.cuh"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kFoldThreads = 512;
constexpr int kGradientThreads = 256;

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

template <class T, class Out, int N>
__global__ void __launch_bounds__(kFoldThreads) fold_forward_kernel(
    Fold<acc_t<T>> fold, const T* tile, int64_t tile_stride, acc_t<T>* stats, Out* probs, int64_t probs_stride,
    Out* probs_z, int64_t probs_z_stride) {  // probs may be the tile: no __restrict__
  using A = acc_t<T>;
  const int64_t t = blockIdx.x, U = fold.rows, step = int64_t(blockDim.x) * N, start = int64_t(threadIdx.x) * N;
  const T* row = tile + t * tile_stride;
  const int64_t y = fold.targets[t] - fold.first;  // may lie outside the tile

  // The others' maximum, and the target's logit.
  A top[1] = {A(-INFINITY)};
  for (int64_t at = start; at < fold.width; at += step) {
    A z[N];
    mapped<N>(fold, row, at, z);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (at + j == y) stats[2 * U + t] = z[j];
      else if (at + j < fold.width) top[0] = z[j] > top[0] ? z[j] : top[0];
    }
  }
  block_reduce<1>(top, Max());

  // Their sums relative to the maximum after this tile; the exponentials are written on the way unless probs_z, which
  // needs the sums first, is asked for too.
  OthersSum<A> others = {stats[t], stats[U + t], stats[3 * U + t], stats[4 * U + t]};
  const bool first_tile = !(others.m > -INFINITY);
  const A factor = move_maximum(others, top[0] > others.m ? top[0] : others.m);
  const A base = finite_or_zero(others.m);
  A sums[4] = {};  // e, e (z - m), e^2, and z over all columns
  auto exponentials = [&](const A(&z)[N], int64_t at, A(&e)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) e[j] = at + j == y || at + j >= fold.width ? A(0) : exp_or_zero(z[j] - base);
  };
  // s_v e, and times (z - center) for the entropy's gradient; a zero stays zero whatever stands beside it.
  auto write = [&](const A(&z)[N], const A(&e)[N], int64_t at, Out* to, bool centered, A center) {
    A out[N];
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = e[j] > 0 ? e[j] * slope_of(fold.map, z[j]) * (centered ? z[j] - center : A(1)) : e[j];
    store_some<N>(to + at, fold.width - at, out);
  };
  for (int64_t at = start; at < fold.width; at += step) {
    A z[N], e[N];
    mapped<N>(fold, row, at, z);
    exponentials(z, at, e);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      sums[0] += e[j];
      sums[1] += e[j] > 0 ? e[j] * (z[j] - base) : A(0);
      sums[2] += e[j] * e[j];
      sums[3] += at + j < fold.width ? z[j] : A(0);
    }
    if (probs && !probs_z) write(z, e, at, probs + t * probs_stride, false, A(0));
  }
  block_reduce<4>(sums, Sum());
  others.s += sums[0];
  others.sz += sums[1];
  others.s2 += sums[2];
  const A center = first_tile ? base + (others.s > 0 ? sums[1] / others.s : A(0)) : stats[6 * U + t];
  if (threadIdx.x == 0) {
    stats[t] = others.m;
    stats[U + t] = others.s;
    stats[3 * U + t] = others.sz;
    stats[4 * U + t] = others.s2;
    stats[5 * U + t] += sums[3];
    if (probs_z) stats[6 * U + t] = center;
    stats[7 * U + t] = factor;
  }
  if (!probs_z) return;
  for (int64_t at = start; at < fold.width; at += step) {
    A z[N], e[N];
    mapped<N>(fold, row, at, z);
    exponentials(z, at, e);
    write(z, e, at, probs_z + t * probs_z_stride, true, center);
    if (probs) write(z, e, at, probs + t * probs_stride, false, A(0));
  }
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

// acc[t] *= factor[t]; rows whose maximum did not move are not even read.
template <int N>
__global__ void __launch_bounds__(kGradientThreads) fold_rescale_kernel(float* acc, int64_t stride, int64_t width,
                                                                        const float* factor) {
  const int64_t t = blockIdx.x, at = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  const float f = factor[t];
  if (at >= width || f == 1.0f) return;
  float x[N];
  load<N>(acc + t * stride + at, x);
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] *= f;
  store<N>(acc + t * stride + at, x);
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
}  // namespace

void cuda_fold_forward(const LogitTile& tile, void* stats, bool, bool, bool, void* out_z, int64_t out_z_stride,
                       uintptr_t stream) {
  if (tile.rows == 0) return;
  with_types("linear_logprob", tile.dtype, tile.out_dtype, [&](auto x, auto y) {
    using T = decltype(x);
    using Out = decltype(y);
    using A = acc_t<T>;
    auto run = [&](auto n) {
      constexpr int N = decltype(n)::value;
      const int64_t units = (tile.width + N - 1) / N;
      const unsigned threads = unsigned(units < kFoldThreads ? (units + kWarp - 1) / kWarp * kWarp : kFoldThreads);
      launch("linear_logprob", fold_forward_kernel<T, Out, N>, unsigned(tile.rows), threads ? threads : kWarp, stream,
             fold_of<A>(tile), static_cast<const T*>(tile.logits), tile.stride, static_cast<A*>(stats),
             static_cast<Out*>(tile.out), tile.out_stride, static_cast<Out*>(out_z), out_z_stride);
    };
    in_units(tile_fits<T, Out>(tile, 8) && units_fit<Out>(out_z, out_z_stride, 8), run);
  });
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

void cuda_fold_rescale(void* acc, const void* factor, int64_t rows, int64_t width, int64_t stride, int dtype,
                       uintptr_t stream) {
  if (dtype != kF32) bad_dtype("linear_logprob", dtype);
  if (rows == 0 || width == 0) return;
  auto run = [&](auto kernel, int64_t n) {
    const dim3 grid(unsigned(rows), blocks_for(width, kGradientThreads * n));
    launch("linear_logprob", kernel, grid, kGradientThreads, stream, static_cast<float*>(acc), stride, width,
           static_cast<const float*>(factor));
  };
  if (aligned16(acc) && stride % 4 == 0 && width % 4 == 0) run(fold_rescale_kernel<4>, 4);
  else run(fold_rescale_kernel<1>, 1);
}

}  // namespace mmfast
