// preference_loss in one launch. A block takes an entry: it finds the pairs that its entry stands in, a warp makes the
// loss of each of them (lanes 0 to 15 sum the chosen side, the others the rejected one), and its tokens get their slopes.
// Behind the barrier of the grid the losses are added up and, with `index`, the slopes of the tokens of one log-prob.
// A pair's loss is made twice, by the blocks of both sides: that is sooner done than passed on. All sums are fp64 and in
// a fixed order: pairs and tokens ascending.
#include "cuda/common.cuh"
#include "preference.h"

namespace mmfast {
namespace {
using namespace cuda;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kHalf = kWarp / 2;

__device__ __forceinline__ double half_warp_sum(double x) {
#pragma unroll
  for (int mask = kHalf / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAll, x, mask);
  return x;
}

template <class T>
struct Preference {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarp;
  PreferenceTensors<T> t;
  PreferenceSpec spec;

  // What a pair says about the block's entry, as its warp leaves it for all threads.
  struct Side {
    double by_s, by_whole;
    int cut;  // tokens from here on count ld_alpha
  };

  __device__ double* values() const { return t.scratch; }         // [P]
  __device__ double* by_token() const { return t.scratch + t.P; }  // [N]

  // The sums of tokens [begin, end), eight of a lane in flight at once.
  __device__ SideSums half_warp_sums(int begin, int cut, int end) const {
    constexpr int kFlight = 8;
    SideSums sums;
    for (int64_t n = int64_t(begin) + threadIdx.x % kHalf; n < end; n += kHalf * kFlight) {
      int at[kFlight];  // past the end the last token stands in, and is left out below
      int64_t from[kFlight];
      T w[kFlight], logp[kFlight], ref[kFlight];
      const auto each = [](auto&& visit) {
#pragma unroll
        for (int i = 0; i < kFlight; ++i) visit(i);
      };
      each([&](int i) { from[i] = at[i] = n + i * kHalf < end ? int(n + i * kHalf) : end - 1, w[i] = T(1), ref[i] = T(0); });
      if (t.index) each([&](int i) { from[i] = t.index[at[i]]; });
      if (t.weights) each([&](int i) { w[i] = t.weights[at[i]]; });
      if (t.ref_logps) each([&](int i) { ref[i] = t.ref_logps[at[i]]; });
      each([&](int i) { logp[i] = t.logps[from[i]]; });
      each([&](int i) {
        const bool here = n + i * kHalf < end;
        const double share = at[i] < cut ? 1.0 : spec.ld_alpha, weight = here ? double(w[i]) : 0.0;
        const double product = here ? weight * double(logp[i]) : 0.0;
        sums.norm += weight;
        sums.whole += product;
        sums.own += share * product;
        sums.ref += here ? share * weight * double(ref[i]) : 0.0;
      });
    }
    return {half_warp_sum(sums.own), half_warp_sum(sums.ref), half_warp_sum(sums.norm), half_warp_sum(sums.whole)};
  }

  // The loss of the pair that has this side (2p: chosen, 2p + 1: rejected), by one warp. The chosen side's block keeps it.
  __device__ void pair(int64_t side, Side& result) const {
    const int lane = threadIdx.x % kWarp, half = lane / kHalf, which = int(side % 2);
    const int64_t p = side / 2, entry = t.pairs[2 * p + half];
    const int begin = t.responses[entry], end = t.responses[entry + 1], length = end - begin;
    const int other = __shfl_xor_sync(kAll, length, kHalf), shorter = length < other ? length : other;
    const SideSums mine = half_warp_sums(begin, spec.ld_alpha != 1 ? begin + shorter : end, end);
    const SideSums theirs = {__shfl_xor_sync(kAll, mine.own, kHalf), __shfl_xor_sync(kAll, mine.ref, kHalf),
                             __shfl_xor_sync(kAll, mine.norm, kHalf), __shfl_xor_sync(kAll, mine.whole, kHalf)};
    const PairLoss loss = pair_loss(spec, half ? theirs : mine, half ? mine : theirs, t.delta ? double(*t.delta) : 0,
                                    t.pair_weights ? double(t.pair_weights[p]) : 1);
    if (lane == which * kHalf)
      result = {which ? loss.by_s[1] : loss.by_s[0], which ? loss.by_whole[1] : loss.by_whole[0], begin + shorter};
    if (lane || which) return;
#pragma unroll
    for (int i = 0; i < 6; ++i) t.metrics[i * t.P + p] = T(loss.metrics[i]);
    values()[p] = loss.metrics[0];
  }

  // The sides among the next kThreads that are the block's entry, ascending; all threads get their number.
  __device__ int sides_of(int64_t entry, int64_t from, int64_t (&found)[kThreads]) const {
    __shared__ unsigned masks[kWarps];
    const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t side = from + threadIdx.x;
    const bool here = side < 2 * t.P && t.pairs[side] == entry && (t.grad || side % 2 == 0);
    const unsigned mask = __ballot_sync(kAll, here);
    if (lane == 0) masks[warp] = mask;
    __syncthreads();
    int count = 0, before = 0;
    for (unsigned w = 0; w < kWarps; ++w) {
      if (w == warp) before = count + __popc(mask & ((1u << lane) - 1));
      count += __popc(masks[w]);
    }
    if (here) found[before] = side;
    __syncthreads();
    return count;
  }

  __device__ void before() const {
    __shared__ int64_t found[kThreads];
    __shared__ Side sides[kWarps];
    const bool cuts = spec.ld_alpha != 1;
    for (int64_t entry = blockIdx.x; entry < t.R; entry += gridDim.x) {
      const int64_t begin = t.responses[entry] + int64_t(threadIdx.x), end = t.responses[entry + 1];
      double slope = 0;
      bool paired = false;
      for (int64_t from = 0; from < 2 * t.P; from += kThreads) {
        const int count = sides_of(entry, from, found);
        for (int first = 0; first < count; first += kWarps) {
          // As many pairs as there are warps at once, then their slopes in ascending order.
          const int warp = int(threadIdx.x / kWarp), here = count - first < kWarps ? count - first : kWarps;
          if (warp < here) pair(found[first + warp], sides[warp]);
          __syncthreads();
          for (int i = 0; i < here; ++i) slope += sides[i].by_s + sides[i].by_whole;
          for (int64_t n = begin; cuts && t.grad && n < end; n += kThreads) {
            double sum = paired ? by_token()[n] : 0;
            for (int i = 0; i < here; ++i)
              sum += sides[i].by_s * (n < sides[i].cut ? 1 : spec.ld_alpha) + sides[i].by_whole;
            by_token()[n] = sum;
          }
          paired = true;
          __syncthreads();
        }
      }
      for (int64_t n = begin; t.grad && n < end; n += kThreads) {
        const double by = (t.weights ? double(t.weights[n]) : 1.0) * (cuts && paired ? by_token()[n] : slope);
        if (t.index) by_token()[n] = by;
        else t.grad[n] = T(by);
      }
    }
  }

  __device__ void after() const {
    if (blockIdx.x == gridDim.x - 1) {
      double total[1] = {0};
      for (int64_t p = threadIdx.x; p < t.P; p += kThreads) total[0] += values()[p];
      block_reduce<1>(total, Sum());
      if (threadIdx.x == 0) *t.loss = T(total[0] * spec.scale);
    }
    if (!t.grad || !t.index) return;
    for (int64_t u = int64_t(blockIdx.x) * kThreads + threadIdx.x; u < t.U; u += int64_t(gridDim.x) * kThreads) {
      double sum = 0;
      for (int64_t j = t.offsets[u]; j < t.offsets[u + 1]; ++j) sum += by_token()[t.copies[j]];
      t.grad[u] = T(sum);
    }
  }
};
}  // namespace

template <class T>
void cuda_preference(const PreferenceTensors<T>& tensors, const PreferenceSpec& spec, uintptr_t stream) {
  const int64_t gathering = tensors.index && tensors.grad ? (tensors.U + 255) / 256 : 0;
  launch_joined("preference_loss", std::max<int64_t>({tensors.R, gathering, 1}), stream, Preference<T>{tensors, spec});
}
template void cuda_preference(const PreferenceTensors<float>&, const PreferenceSpec&, uintptr_t);
template void cuda_preference(const PreferenceTensors<double>&, const PreferenceSpec&, uintptr_t);

}  // namespace mmfast
