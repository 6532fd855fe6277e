// The CUDA ops run by csrc/cuda/emulate.h on the host, as a Python module.
#include "bindings.h"
#include "cuda/common.cuh"

namespace {
// The last warp writes what every thread reads. Without the barrier between them that is a race, which the descending
// order of warps hides and the ascending one shows; with `first`, the first warp writes and it is the other way round.
__global__ void pass_on(int* out, bool first, bool barrier) {
  __shared__ int word;
  if (threadIdx.x == 0) word = 0;
  __syncthreads();
  if (threadIdx.x == (first ? 0 : blockDim.x - 1)) word = 7;
  if (barrier) __syncthreads();
  out[threadIdx.x] = word;
}
}  // namespace

PYBIND11_MODULE(emulated, m) {
  mmfast::bind_logit_tile(m);
  mmfast::bind_cuda(m);
  m.def("backwards", [](bool on) { mmfast::emulate::backwards() = on; });
  m.def("is_backwards", [] { return mmfast::emulate::backwards(); });
  m.def("pass_on", [](int64_t out, unsigned threads, bool first, bool barrier) {
    mmfast::cuda::launch("pass_on", pass_on, 1, threads, 0, reinterpret_cast<int*>(out), first, barrier);
  });
}
