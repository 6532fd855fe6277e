// What every CUDA op shares: launches that name the op when they fail, 16-byte vectors, conversions, block reductions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "math.h"
#include "cuda/ops.h"

#ifdef MMFAST_EMULATE
#include "emulate.h"  // of tests/kernels: the same kernels on the host
#else
#include <cooperative_groups.h>
#endif

namespace mmfast::cuda {

inline cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

// A launch that fails, or an earlier error that surfaces here, becomes a RuntimeError in Python.
inline void check_launch(const char* op, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

// Queues kernel(args...).
template <class... Parameters, class... Args>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, unsigned threads, uintptr_t stream, Args... args) {
#ifdef MMFAST_EMULATE
  (void)op, (void)stream;
  emulate::run(grid, threads, [&] { kernel(args...); });
#else
  kernel<<<grid, threads, 0, stream_of(stream)>>>(args...);
  check_launch(op, cudaGetLastError());
#endif
}

// Runs job.before() in every block, then, when all are done with it, job.after(): one launch. Blocks that wait for each
// other must be on the device at once, so there may be fewer than asked for; a job goes through its work by gridDim.
#ifdef MMFAST_EMULATE
template <class Job>
void launch_joined(const char*, int64_t blocks, uintptr_t, Job job) {
  for (auto phase : {&Job::before, &Job::after})
    emulate::run(unsigned(std::min<int64_t>(blocks, emulate::kResident)), Job::kThreads, [&] { (job.*phase)(); });
}
#else
template <class Job>
__global__ void __launch_bounds__(Job::kThreads) joined(Job job) {
  job.before();
  cooperative_groups::this_grid().sync();
  job.after();
}
template <class Job>
void launch_joined(const char* op, int64_t blocks, uintptr_t stream, Job job) {
  constexpr int kDevices = 64;
  static std::atomic<int> resident[kDevices];  // of this kernel; 0: not asked yet
  int device = 0, each = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  int most = error == cudaSuccess && device < kDevices ? resident[device].load() : 0;
  if (error == cudaSuccess && most == 0) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, joined<Job>, Job::kThreads, 0);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    most = each * processors;
    if (device < kDevices) resident[device] = most;
  }
  void* arguments[] = {&job};
  if (error == cudaSuccess)
    error = cudaLaunchCooperativeKernel(joined<Job>, dim3(unsigned(std::min<int64_t>(blocks, most))),
                                        dim3(Job::kThreads), arguments, 0, stream_of(stream));
  check_launch(op, error);
}
#endif

[[noreturn]] inline void bad_dtype(const char* op, int dtype) {
  throw std::invalid_argument(std::string(op) + ": no CUDA kernel for dtype code " + std::to_string(dtype));
}

// Calls body(T{}) with the C++ type of a dtype code; with_float leaves fp64 to torch.
template <class F>
void with_float(const char* op, int dtype, F&& body) {
  switch (dtype) {
    case kF32: return body(float{});
    case kBF16: return body(__nv_bfloat16{});
    case kF16: return body(__half{});
    default: bad_dtype(op, dtype);
  }
}
template <class F>
void with_type(const char* op, int dtype, F&& body) {
  if (dtype == kF64) body(double{});
  else with_float(op, dtype, body);
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
inline unsigned blocks_for(int64_t n, int64_t each) { return unsigned((n + each - 1) / each); }

// Sums and statistics are kept in fp32, for fp64 inputs in fp64.
template <class T> using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_acc(acc_t<T> x);
template <> __device__ __forceinline__ float from_acc<float>(float x) { return x; }
template <> __device__ __forceinline__ double from_acc<double>(double x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ __half from_acc<__half>(float x) { return __float2half_rn(x); }

// N neighbouring elements, read or written 16 bytes at a time. N == 1 asks for no alignment.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vec {
  T v[N];
};
template <int N, class T>
__device__ __forceinline__ void load(const T* from, acc_t<T> (&to)[N]) {
  const Vec<T, N> held = *reinterpret_cast<const Vec<T, N>*>(from);
#pragma unroll
  for (int j = 0; j < N; ++j) to[j] = to_acc(held.v[j]);
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const acc_t<T> (&from)[N]) {
  Vec<T, N> held;
#pragma unroll
  for (int j = 0; j < N; ++j) held.v[j] = from_acc<T>(from[j]);
  *reinterpret_cast<Vec<T, N>*>(to) = held;
}
// The last unit of a row may reach over its end: only the first `left` elements are touched.
template <int N, class T>
__device__ __forceinline__ void load_some(const T* from, int64_t left, acc_t<T> (&to)[N]) {
  if (left >= N) return load<N>(from, to);
#pragma unroll
  for (int j = 0; j < N; ++j) to[j] = j < left ? to_acc(from[j]) : acc_t<T>(0);
}
template <int N, class T>
__device__ __forceinline__ void store_some(T* to, int64_t left, const acc_t<T> (&from)[N]) {
  if (left >= N) return store<N>(to, from);
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (j < left) to[j] = from_acc<T>(from[j]);
}

struct Sum {
  static constexpr double kNone = 0;
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max {
  static constexpr double kNone = -INFINITY;
  template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

// Reduces N values over the block in a fixed order; every thread gets the result. Blocks are whole warps.
template <int N, class T, class Op>
__device__ __forceinline__ void block_reduce(T (&value)[N], Op op) {
  __shared__ T parts[kMaxWarps * N];
  const unsigned lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  auto reduce_warp = [&] {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int far = kWarp / 2; far > 0; far /= 2) value[n] = op(value[n], __shfl_xor_sync(0xffffffffu, value[n], far));
  };
  reduce_warp();
  __syncthreads();  // the previous reduction's readers are done with parts
  if (lane == 0)
#pragma unroll
    for (int n = 0; n < N; ++n) parts[threadIdx.x / kWarp * N + n] = value[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) value[n] = lane < warps ? parts[lane * N + n] : T(Op::kNone);
  reduce_warp();
}

}  // namespace mmfast::cuda
