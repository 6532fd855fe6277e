// What a call of the head does once with its rows, each in one kernel (mmfast/ops/head/outcome.py has the formulas, in
// torch, and the letters).
#include "cuda/common.cuh"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kRowThreads = 64;  // few rows, much arithmetic: spread over the device
constexpr int kThreads = 256;

// log(e^a + e^b)
__device__ __forceinline__ float log_add(float a, float b) {
  const float top = a > b ? a : b;
  return a == b && fabsf(a) == INFINITY ? a : top + log1pf(expf(-fabsf(a - b)));
}

// A thread a row.
__global__ void __launch_bounds__(kRowThreads) outcome_kernel(HeadOutcome call, float to_tanh, float temperature) {
  const int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, U = call.rows;
  if (t >= U) return;
  const float m = call.stats[t], s = call.stats[U + t], zy = call.stats[2 * U + t];
  const float written = call.written ? call.written[t] : 0.0f, inverse = written > 0 ? 1.0f / written : 0.0f, log_s = logf(s);
  const float distance = (m - zy) + log_s;  // lse of the others, seen from the target
  const float logp = -log_add(distance, 0.0f), p = expf(logp), p_others = 1.0f / (1.0f + expf(-distance));
  const float lse = log_add(m + log_s, zy), tanh = call.softcap ? zy * to_tanh : 0.0f;
  const float slope = (1.0f - tanh * tanh) / temperature, others = p_others * inverse / temperature;
  float n[14] = {};
  n[0] = logp;
  n[4] = zy >= m ? 1.0f : 0.0f;
  n[5] = lse;
  n[6] = p_others;
  n[7] = slope;
  if (call.written) n[8] = p_others * slope, n[9] = -others;
  if (call.entropy) {
    const float mean_others = s > 0 ? m + call.stats[3 * U + t] / s : lse;
    const float entropy = p_others * (lse - mean_others) - (p > 0 ? p * logp : 0.0f);
    n[1] = entropy;
    if (call.entropy_grad) call.told[U + t] = entropy;
    if (call.entropy_grad && call.written) {
      n[10] = (p > 0 ? -p * (logp + entropy) : 0.0f) * slope;
      n[11] = s > 0 ? call.stats[6 * U + t] - lse + entropy : 0.0f;
    }
  }
  if (call.squares) {
    const float log_p_others = -log_add(-distance, 0.0f);
    n[2] = log_add(2 * logp, s > 0 ? 2 * (log_p_others - log_s) + logf(call.stats[4 * U + t]) : -INFINITY);
  }
  if (call.total) n[3] = call.stats[5 * U + t] / float(call.vocab);
  if (call.bases) {
    for (int64_t k = 0; k < call.tiles; ++k) {
      const float base = call.bases[k * U + t];
      call.bases[k * U + t] = (base > -INFINITY ? expf(base - call.base[t]) : 1.0f) * (call.normalise ? inverse : 1.0f);
    }
    n[12] = call.normalise ? -p_others / temperature : -others;
    n[13] = (call.normalise ? -written * inverse : -written) * slope * temperature;
  }
  call.told[t] = logp;
#pragma unroll
  for (int i = 0; i < 14; ++i) call.numbers[i * U + t] = n[i];
}

// out[i] = a scale p[index[t]] + b (q[t] + c r[t]), coefficients of row t; t = i, or summed over the copies of i, in order.
// Blocks (row, column block).
template <class T, class Q, int N>
__global__ void __launch_bounds__(kThreads) combine_kernel(HeadCombine call) {
  const int64_t i = blockIdx.x, W = call.width, at = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (at >= W) return;
  const int64_t begin = call.offsets ? call.offsets[i] : i, end = call.offsets ? call.offsets[i + 1] : i + 1;
  float x[N] = {};
  for (int64_t k = begin; k < end; ++k) {
    const int64_t t = call.offsets ? call.copies[k] : i;
    const float a = call.a[t * call.a_stride] * (call.scale ? call.scale[t] : 1.0f);
    float v[N];
    load<N>(static_cast<const T*>(call.p) + (call.index ? call.index[t] : t) * W + at, v);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] += a * v[j];
    if (!call.q) continue;
    const float b = call.b[t * call.b_stride], c = call.r ? call.c[t] : 0.0f;
    load<N>(static_cast<const Q*>(call.q) + t * call.q_stride + at, v);
    if (call.r) {
      float r[N];
      load<N>(static_cast<const Q*>(call.r) + t * call.q_stride + at, r);
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] += c * r[j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] += b * v[j];
  }
  store<N>(static_cast<T*>(call.out) + i * W + at, x);
}

// kept[t, v] *= scale[v / tile_width, t], then kept[t, y_t] = entry[t]. Blocks (row, tile); a tile whose scale is 1 is left.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) finish_kernel(T* kept, int64_t width, int64_t stride, const float* scale,
                                                          int64_t tile_width, const int64_t* targets, const float* entry) {
  const int64_t t = blockIdx.x, first = blockIdx.y * tile_width;
  const int64_t end = first + tile_width < width ? first + tile_width : width, y = targets[t];
  T* row = kept + t * stride;
  const float f = scale[int64_t(blockIdx.y) * gridDim.x + t];
  if (f != 1.0f)
    for (int64_t at = first + int64_t(threadIdx.x) * N; at < end; at += int64_t(blockDim.x) * N) {
      float x[N];
      load_some<N>(row + at, end - at, x);
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = at + j == y ? entry[t] : x[j] * f;
      store_some<N>(row + at, end - at, x);
    }
  else if (threadIdx.x == 0 && first <= y && y < end)
    row[y] = from_acc<T>(entry[t]);
}
}  // namespace

void cuda_head_outcome(const HeadOutcome& call, uintptr_t stream) {
  if (call.rows == 0) return;
  const float to_tanh = call.softcap ? float(call.temperature / call.softcap) : 0.0f;
  launch("linear_logprob", outcome_kernel, blocks_for(call.rows, kRowThreads), kRowThreads, stream, call, to_tanh,
         float(call.temperature));
}

void cuda_head_combine(const HeadCombine& call, uintptr_t stream) {
  if (call.rows == 0 || call.width == 0) return;
  const bool fits = call.width % 8 == 0 && call.q_stride % 8 == 0 && aligned16(call.out) && aligned16(call.p) &&
                    aligned16(call.q) && aligned16(call.r);
  const int64_t units = fits ? call.width / 8 : call.width;
  const unsigned threads = unsigned(units < kThreads ? (units + kWarp - 1) / kWarp * kWarp : kThreads);
  const dim3 grid(unsigned(call.rows), blocks_for(units, kThreads));
  with_float("linear_logprob", call.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = call.q_dtype == kF32 ? (fits ? combine_kernel<T, float, 8> : combine_kernel<T, float, 1>)
                                             : (fits ? combine_kernel<T, T, 8> : combine_kernel<T, T, 1>);
    launch("linear_logprob", kernel, grid, threads, stream, call);
  });
}

void cuda_fold_finish(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows,
                      int64_t width, int64_t stride, int64_t tile_width, int dtype, uintptr_t stream) {
  if (rows == 0 || width == 0) return;
  const bool fits = aligned16(kept) && stride % 8 == 0 && tile_width % 8 == 0;
  const dim3 grid(unsigned(rows), blocks_for(width, tile_width));
  with_float("linear_logprob", dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("linear_logprob", fits ? finish_kernel<T, 8> : finish_kernel<T, 1>, grid, kThreads, stream,
           static_cast<T*>(kept), width, stride, static_cast<const float*>(scale), tile_width, targets,
           static_cast<const float*>(entry));
  });
}

}  // namespace mmfast
