// What every CUDA op shares: launch checks that name the op, 16-byte vectors, conversions, block reductions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace mmfast::cuda {

inline cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

// A launch that failed, or an earlier error that surfaces here, becomes a RuntimeError in Python.
inline void check_launch(const char* op) {
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

[[noreturn]] inline void bad_dtype(const char* op, int dtype) {
  throw std::invalid_argument(std::string(op) + ": no CUDA kernel for dtype code " + std::to_string(dtype));
}

// Calls body(T{}) with the C++ type of a dtype code.
template <class F>
void with_type(const char* op, int dtype, F&& body) {
  switch (dtype) {
    case kF32: return body(float{});
    case kBF16: return body(__nv_bfloat16{});
    case kF16: return body(__half{});
    case kF64: return body(double{});
    default: bad_dtype(op, dtype);
  }
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// N elements moved by one instruction where N * sizeof(T) is 16.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

template <class T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <class T> using acc_t = typename Accumulator<T>::type;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_acc(acc_t<T> x);
template <> __device__ __forceinline__ float from_acc<float>(float x) { return x; }
template <> __device__ __forceinline__ double from_acc<double>(double x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ __half from_acc<__half>(float x) { return __float2half_rn(x); }

}  // namespace mmfast::cuda
