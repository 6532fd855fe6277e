// preference_loss in one launch of one block: a warp a pair, then the gradient of every entry, then of every log-prob.
// Sums are fp64 and in a fixed order. What belongs to one log-prob or one entry is found through linked lists made with
// integer exchanges; their order is arbitrary, so each is walked in ascending order of its members.
#include "cuda/common.cuh"
#include "preference.h"

namespace mmfast {
namespace {
using namespace cuda;

constexpr int kThreads = 512;
constexpr int kSortable = 64;  // members of a list that are put in order in local memory

// What the kernel keeps between its phases, in one buffer that the caller owns.
struct Scratch {
  double *values, *by_s, *by_whole, *by_token;  // [P], [2P], [2P], [N]
  int32_t *entry_head, *side_next, *token_head, *token_next;  // [R], [2P], [U], [N]
};

template <class T>
struct Arguments {
  const T *logps, *weights, *ref, *pair_weights, *delta;
  const int64_t *index, *pairs;
  const int32_t* responses;
  int64_t U, N, R, P;
  PreferenceSpec spec;
  T *loss, *metrics, *grad;
  Scratch scratch;
};

struct Sums {
  double own = 0, ref = 0, norm = 0;
};

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// The weighted sums of tokens [begin, end), by one warp; every lane gets them.
template <class T>
__device__ Sums range_sums(const Arguments<T>& a, int64_t begin, int64_t end) {
  Sums sums;
#pragma unroll 4
  for (int64_t n = begin + threadIdx.x % kWarp; n < end; n += kWarp) {
    const double w = a.weights ? double(a.weights[n]) : 1.0;
    sums.norm += w;
    sums.own += w * double(a.logps[a.index ? a.index[n] : n]);
    if (a.ref) sums.ref += w * double(a.ref[n]);
  }
  return {warp_sum(sums.own), warp_sum(sums.ref), warp_sum(sums.norm)};
}

// One side of a pair: S, S_ref, n, and S without ld_alpha, averaged where the spec says so.
struct Side {
  double s, ref, norm, whole, unit;
};
template <class T>
__device__ Side side_of(const Arguments<T>& a, int64_t begin, int64_t cut, int64_t end) {
  const Sums head = range_sums(a, begin, cut);
  const Sums tail = cut < end ? range_sums(a, cut, end) : Sums();
  const double sum = head.norm + tail.norm, norm = sum == 0 ? 1 : sum, unit = a.spec.average ? 1 / norm : 1;
  const double share = a.spec.ld_alpha;
  return {(head.own + share * tail.own) * unit, (head.ref + share * tail.ref) * unit, norm, (head.own + tail.own) * unit,
          unit};
}

// Where ld_alpha starts to count in an entry of this pair: behind the shorter side's length; at the end without it.
template <class T>
__device__ __forceinline__ int64_t cut_of(const Arguments<T>& a, int64_t p, int64_t begin, int64_t end) {
  if (a.spec.ld_alpha == 1) return end;
  const int64_t c = a.pairs[2 * p], r = a.pairs[2 * p + 1];
  const int64_t chosen = a.responses[c + 1] - a.responses[c], rejected = a.responses[r + 1] - a.responses[r];
  return begin + (chosen < rejected ? chosen : rejected);
}

template <class T>
__device__ void pair_loss(const Arguments<T>& a, int64_t p) {
  Side side[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t entry = a.pairs[2 * p + i], begin = a.responses[entry], end = a.responses[entry + 1];
    side[i] = side_of(a, begin, cut_of(a, p, begin, end), end);
  }
  if (threadIdx.x % kWarp) return;
  const PreferenceSpec& spec = a.spec;
  const double a_c = side[0].s - side[0].ref, a_r = side[1].s - side[1].ref;
  const PairTerms terms = pair_terms(spec, a_c, a_r, side[0].norm, side[1].norm, a.delta ? double(*a.delta) : 0);
  const double weight = a.pair_weights ? double(a.pair_weights[p]) : 1;
  const double sft = spec.sft_average && !spec.average ? spec.sft_weight / side[0].norm : spec.sft_weight;
  const double value = weight * (terms.value - sft * side[0].whole);
  const double row[6] = {value, spec.beta * (a_c - a_r), spec.beta * a_c, spec.beta * a_r, side[0].s, side[1].s};
#pragma unroll
  for (int i = 0; i < 6; ++i) a.metrics[i * a.P + p] = T(row[i]);
  a.scratch.values[p] = value;
  a.scratch.by_s[2 * p] = weight * spec.scale * side[0].unit * terms.d_chosen;
  a.scratch.by_s[2 * p + 1] = weight * spec.scale * side[1].unit * terms.d_rejected;
  a.scratch.by_whole[2 * p] = -weight * spec.scale * side[0].unit * sft;
  a.scratch.by_whole[2 * p + 1] = 0;
}

// Calls visit(member) for a list's members, ascending. A list too long to be ordered at once is walked once a member.
template <class F>
__device__ __forceinline__ void ascending(const int32_t* next, int32_t head, F&& visit) {
  if (head < 0) return;
  if (next[head] < 0) return visit(head);
  int32_t members[kSortable];
  int count = 0;
  for (int32_t m = head; m >= 0; m = next[m], ++count) {
    if (count == kSortable) {
      count = -1;
      break;
    }
    int at = count;
    for (; at > 0 && members[at - 1] > m; --at) members[at] = members[at - 1];
    members[at] = m;
  }
  for (int i = 0; i < count; ++i) visit(members[i]);
  if (count >= 0) return;
  for (int32_t last = -1;;) {
    int32_t smallest = -1;
    for (int32_t m = head; m >= 0; m = next[m])
      if (m > last && (smallest < 0 || m < smallest)) smallest = m;
    if (smallest < 0) return;
    visit(last = smallest);
  }
}

// d loss / d logp of token n through every pair its entry stands in.
template <class T>
__device__ __forceinline__ double token_slope(const Arguments<T>& a, int64_t entry, int64_t n, int64_t begin, int64_t end) {
  double slope = 0;
  ascending(a.scratch.side_next, a.scratch.entry_head[entry], [&](int32_t side) {
    const double share = n < cut_of(a, side / 2, begin, end) ? 1 : a.spec.ld_alpha;
    slope += a.scratch.by_s[side] * share + a.scratch.by_whole[side];
  });
  return slope;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) preference_kernel(Arguments<T> a) {
  const int64_t first = threadIdx.x, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  const Scratch& s = a.scratch;
  if (a.grad) {
    for (int64_t e = first; e < a.R; e += blockDim.x) s.entry_head[e] = -1;
    if (a.index)
      for (int64_t u = first; u < a.U; u += blockDim.x) s.token_head[u] = -1;
    __syncthreads();
    for (int64_t side = first; side < 2 * a.P; side += blockDim.x)
      s.side_next[side] = atomicExch(&s.entry_head[a.pairs[side]], int32_t(side));
    if (a.index)
      for (int64_t n = first; n < a.N; n += blockDim.x)
        s.token_next[n] = atomicExch(&s.token_head[a.index[n]], int32_t(n));
  }
  for (int64_t p = warp; p < a.P; p += warps) pair_loss(a, p);
  __syncthreads();

  double total[1] = {0};
  for (int64_t p = first; p < a.P; p += blockDim.x) total[0] += s.values[p];
  block_reduce<1>(total, Sum());
  if (threadIdx.x == 0) *a.loss = T(total[0] * a.spec.scale);
  if (!a.grad) return;

  for (int64_t e = warp; e < a.R; e += warps) {
    const int64_t begin = a.responses[e], end = a.responses[e + 1];
    const bool one_slope = a.spec.ld_alpha == 1;
    const double slope = one_slope && begin < end ? token_slope(a, e, begin, begin, end) : 0;
    for (int64_t n = begin + lane; n < end; n += kWarp) {
      const double w = a.weights ? double(a.weights[n]) : 1.0;
      const double by = w * (one_slope ? slope : token_slope(a, e, n, begin, end));
      if (a.index) s.by_token[n] = by;
      else a.grad[n] = T(by);
    }
  }
  if (!a.index) return;
  __syncthreads();
  for (int64_t u = first; u < a.U; u += blockDim.x) {
    double sum = 0;
    ascending(s.token_next, s.token_head[u], [&](int32_t n) { sum += s.by_token[n]; });
    a.grad[u] = T(sum);
  }
}

template <class T>
void run(const PreferenceTensors& t, const PreferenceSpec& spec, uintptr_t stream) {
  const int64_t doubles = 5 * t.P + t.N;
  double* d = static_cast<double*>(t.scratch);
  int32_t* i = reinterpret_cast<int32_t*>(d + doubles);
  const Scratch scratch{d, d + t.P, d + 3 * t.P, d + 5 * t.P, i, i + t.R, i + t.R + 2 * t.P, i + t.R + 2 * t.P + t.U};
  const Arguments<T> a{static_cast<const T*>(t.logps),        static_cast<const T*>(t.weights),
                       static_cast<const T*>(t.ref_logps),    static_cast<const T*>(t.pair_weights),
                       static_cast<const T*>(t.delta),        t.index, t.pairs, t.responses, t.U, t.N, t.R, t.P, spec,
                       static_cast<T*>(t.loss),               static_cast<T*>(t.metrics),
                       static_cast<T*>(t.grad),               scratch};
  launch("preference_loss", preference_kernel<T>, dim3(1), kThreads, stream, a);
}
}  // namespace

int64_t cuda_preference_scratch(int64_t U, int64_t N, int64_t R, int64_t P) {
  return 8 * (5 * P + N) + 4 * (R + 2 * P + U + N);
}

void cuda_preference(const PreferenceTensors& tensors, const PreferenceSpec& spec, int dtype, uintptr_t stream) {
  if (tensors.N > INT32_MAX || tensors.U > INT32_MAX || tensors.P > INT32_MAX / 2)
    throw std::invalid_argument("preference_loss: more than 2^31 tokens or pairs in one call");
  if (dtype == kF64) run<double>(tensors, spec, stream);
  else if (dtype == kF32) run<float>(tensors, spec, stream);
  else bad_dtype("preference_loss", dtype);
}

}  // namespace mmfast
