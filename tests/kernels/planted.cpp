// Kernels with planted races, to see that the emulation finds them.
#include "cuda/common.cuh"

namespace {
// The last warp writes what every thread reads. Without the barrier between them that is a race, which the descending
// order of warps hides and the ascending one shows; with `first`, the first warp writes and it is the other way round.
__global__ void pass_on_kernel(int* out, bool first, bool barrier) {
  __shared__ int word;
  if (threadIdx.x == 0) word = 0;
  __syncthreads();
  if (threadIdx.x == (first ? 0 : blockDim.x - 1)) word = 7;
  if (barrier) __syncthreads();
  out[threadIdx.x] = word;
}
// Every block adds to one word.
__global__ void count_blocks_kernel(int* word) {
  if (threadIdx.x == 0) *word += 1;
}
}  // namespace

void pass_on(int* out, unsigned threads, bool first, bool barrier) {
  mmfast::cuda::launch("pass_on", pass_on_kernel, 1, threads, 0, out, first, barrier);
}
void count_blocks(int* word, unsigned blocks) {
  mmfast::cuda::launch("count_blocks", count_blocks_kernel, blocks, 32, 0, word);
}
