// splice_embeddings: rows copied once from one of two tables; and the sum over segments that its backward needs.
#include "cuda/common.cuh"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kThreads = 128;
constexpr int kUnroll = 4;  // independent loads in flight before the first store

// One block a row. W is the widest word that divides the row and both tables' alignment.
template <class W>
__global__ void __launch_bounds__(kThreads) splice_kernel(
    const int64_t* __restrict__ tokens, const int64_t* __restrict__ features, const W* __restrict__ table,
    const W* __restrict__ images, W* __restrict__ out, int64_t words) {
  const int64_t t = blockIdx.x;
  const int64_t f = features[t];
  const W* from = f >= 0 ? images + f * words : table + tokens[t] * words;
  W* to = out + t * words;
  for (int64_t start = threadIdx.x; start < words; start += kThreads * kUnroll) {
    W held[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
      if (start + i * kThreads < words) held[i] = from[start + i * kThreads];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
      if (start + i * kThreads < words) to[start + i * kThreads] = held[i];
  }
}

// out[s] = sum of in[order[i]] over i in [offsets[s], offsets[s+1]), in that order: no atomics, every row written once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) segment_sum_kernel(
    const T* __restrict__ in, const int64_t* __restrict__ order, const int64_t* __restrict__ offsets,
    T* __restrict__ out, int64_t width) {
  using V = Vec<T, N>;
  const int64_t s = blockIdx.x;
  const int64_t column = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * N;
  if (column >= width) return;
  acc_t<T> sum[N] = {};
  const int64_t end = offsets[s + 1];
  int64_t i = offsets[s];
  for (; i + kUnroll <= end; i += kUnroll) {
    V held[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) held[k] = *reinterpret_cast<const V*>(in + order[i + k] * width + column);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += to_acc(held[k].v[j]);
  }
  for (; i < end; ++i) {
    const V held = *reinterpret_cast<const V*>(in + order[i] * width + column);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += to_acc(held.v[j]);
  }
  V result;
#pragma unroll
  for (int j = 0; j < N; ++j) result.v[j] = from_acc<T>(sum[j]);
  *reinterpret_cast<V*>(out + s * width + column) = result;
}

template <class W>
void launch_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                   int64_t rows, int64_t row_bytes, cudaStream_t stream) {
  splice_kernel<W><<<dim3(unsigned(rows)), kThreads, 0, stream>>>(
      tokens, features, static_cast<const W*>(table), static_cast<const W*>(images), static_cast<W*>(out),
      row_bytes / int64_t(sizeof(W)));
}

template <class T, int N>
void launch_segment_sum(const void* in, const int64_t* order, const int64_t* offsets, void* out, int64_t segments,
                        int64_t width, cudaStream_t stream) {
  const int64_t columns = int64_t(kThreads) * N;
  const dim3 grid(unsigned(segments), unsigned((width + columns - 1) / columns));
  segment_sum_kernel<T, N><<<grid, kThreads, 0, stream>>>(static_cast<const T*>(in), order, offsets,
                                                          static_cast<T*>(out), width);
}
}  // namespace

void cuda_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                 int64_t rows, int64_t row_bytes, uintptr_t stream) {
  if (rows == 0 || row_bytes == 0) return;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(table) | reinterpret_cast<uintptr_t>(images) |
                         reinterpret_cast<uintptr_t>(out) | uintptr_t(row_bytes);
  const cudaStream_t s = stream_of(stream);
  if (bits % 16 == 0) launch_splice<int4>(tokens, features, table, images, out, rows, row_bytes, s);
  else if (bits % 4 == 0) launch_splice<int>(tokens, features, table, images, out, rows, row_bytes, s);
  else launch_splice<short>(tokens, features, table, images, out, rows, row_bytes, s);
  check_launch("splice_embeddings");
}

void cuda_segment_sum(const void* in, const int64_t* order, const int64_t* offsets, void* out, int64_t segments,
                      int64_t width, int dtype, uintptr_t stream) {
  if (segments == 0 || width == 0) return;
  with_type("segment_sum", dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    if (width % N == 0 && aligned16(in) && aligned16(out))
      launch_segment_sum<T, N>(in, order, offsets, out, segments, width, stream_of(stream));
    else
      launch_segment_sum<T, 1>(in, order, offsets, out, segments, width, stream_of(stream));
  });
  check_launch("segment_sum");
}

}  // namespace mmfast
