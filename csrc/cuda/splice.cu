// splice_embeddings: rows copied once from one of two tables; and the sum over segments that its backward needs.
#include "cuda/common.cuh"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kThreads = 128;
constexpr int kUnroll = 4;  // independent loads in flight before the first store

// One block a row. W is the widest word that divides the row and all the addresses.
template <class W>
__global__ void __launch_bounds__(kThreads) splice_kernel(
    const int64_t* __restrict__ tokens, const int64_t* __restrict__ features, const W* __restrict__ table,
    const W* __restrict__ images, W* __restrict__ out, int64_t words) {
  const int64_t t = blockIdx.x;
  const int64_t f = features[t];
  const W* from = f >= 0 ? images + f * words : table + tokens[t] * words;
  W* to = out + t * words;
  for (int64_t start = threadIdx.x; start < words; start += kThreads * kUnroll) {
    W held[kUnroll] = {};
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
      if (start + i * kThreads < words) held[i] = from[start + i * kThreads];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
      if (start + i * kThreads < words) to[start + i * kThreads] = held[i];
  }
}

// out[s] = sum of values[order[i]] over i in [offsets[s], offsets[s+1]), in that order: no atomics, each row written once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) segment_sum_kernel(
    const T* __restrict__ values, const int64_t* __restrict__ order, const int64_t* __restrict__ offsets,
    T* __restrict__ out, int64_t width) {
  const int64_t s = blockIdx.x;
  const int64_t column = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * N;
  if (column >= width) return;
  acc_t<T> sum[N] = {};
  const int64_t end = offsets[s + 1];
  int64_t i = offsets[s];
  for (; i + kUnroll <= end; i += kUnroll) {
    acc_t<T> held[kUnroll][N];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) load<N>(values + order[i + k] * width + column, held[k]);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += held[k][j];
  }
  for (; i < end; ++i) {
    acc_t<T> held[N];
    load<N>(values + order[i] * width + column, held);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += held[j];
  }
  store<N>(out + s * width + column, sum);
}

}  // namespace

void cuda_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                 int64_t rows, int64_t row_bytes, uintptr_t stream) {
  if (rows == 0 || row_bytes == 0) return;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(table) | reinterpret_cast<uintptr_t>(images) |
                         reinterpret_cast<uintptr_t>(out) | uintptr_t(row_bytes);
  const auto in_words = [&](auto zero) {
    using W = decltype(zero);
    launch("splice_embeddings", splice_kernel<W>, unsigned(rows), kThreads, stream, tokens, features,
           static_cast<const W*>(table), static_cast<const W*>(images), static_cast<W*>(out),
           row_bytes / int64_t(sizeof(W)));
  };
  if (bits % 16 == 0) in_words(int4{});
  else if (bits % 4 == 0) in_words(int{});
  else in_words(short{});
}

void cuda_segment_sum(const void* values, const int64_t* order, const int64_t* offsets, void* out, int64_t segments,
                      int64_t width, int dtype, uintptr_t stream) {
  if (segments == 0 || width == 0) return;
  with_type("segment_sum", dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const bool fits = width % N == 0 && aligned16(values) && aligned16(out);
    const dim3 grid(unsigned(segments), blocks_for(fits ? width / N : width, kThreads));
    launch("segment_sum", fits ? segment_sum_kernel<T, N> : segment_sum_kernel<T, 1>, grid, kThreads, stream,
           static_cast<const T*>(values), order, offsets, static_cast<T*>(out), width);
  });
}

}  // namespace mmfast
