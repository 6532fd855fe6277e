// Tree attention on CPU in fp32, without a matrix of scores: the softmax is summed as the keys go by, and the backward
// pass makes the weights again. All seven products are one micro-kernel: 6 rows of accumulators that stay in registers.
//
// A task is a run's queries with one key head. It packs the keys that it gathers once, then takes blocks of 48 queries,
// the lanes of vectors (of the last block only as many vectors as it fills), against blocks of 60 keys. A task owns what it writes, so no result depends on the number
// of threads. Products round rows up to 6: buffers have room for it, and what lies beyond a run's last row is not read.
#include "ops.h"

#if MMFAST_ISA_LEVEL < 2
namespace mmfast::MMFAST_ISA {
bool tree_forward(const TreeAttention&, float*, float*) { return false; }
bool tree_backward(const TreeAttention&, const TreeGradient&) { return false; }
}  // namespace mmfast::MMFAST_ISA
#else
#include <omp.h>

#include "cpu/scratch.h"
#include "math.h"

namespace mmfast {
namespace MMFAST_ISA {

#if MMFAST_ISA_LEVEL == 3
constexpr int kLanes = 16, kVectors = 4;  // at most 24 accumulators of 32 registers
#else
constexpr int kLanes = 8, kVectors = 2;  // 12 of 16
#endif
constexpr int kRows = 6, kQueries = 48, kKeys = 60;
constexpr float kLog2E = 1.44269504f;

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
static inline Vector& vector_at(float* p) { return *reinterpret_cast<Vector*>(p); }
static inline const Vector& vector_at(const float* p) { return *reinterpret_cast<const Vector*>(p); }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t to = kRows) { return (n + to - 1) / to * to; }
static inline const float* row_of(const Rows& x, int64_t token, int64_t head) {
  return x.at + token * x.token + head * x.head;
}

struct Left {  // A, read by element: a matrix and its transpose are the same to it
  const float* at;
  int64_t row, column;
};

// C[6][N vectors] = A[6][depth] B[depth][N vectors], added to C where kAdd, whose rows `factor` scales first.
template <int N, bool kAdd>
static void micro(int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* factor) {
  Vector sum[kRows][N];
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum[m][n] = kAdd ? vector_at(c + m * c_row + n * kLanes) : Vector{};
      if (kAdd && factor) sum[m][n] *= factor[m];
    }
  for (int64_t p = 0; p < depth; ++p) {
    Vector right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = vector_at(b + p * b_row + n * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      const float left = a.at[m * a.row + p * a.column];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] += left * right[n];
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) vector_at(c + m * c_row + n * kLanes) = sum[m][n];
}

template <bool kAdd, int N = kVectors>
static void columns_of(int64_t vectors, int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c,
                       int64_t c_row, const float* factor) {
  if constexpr (N > 1)
    if (vectors < N) return columns_of<kAdd, N - 1>(vectors, rows, depth, a, b, b_row, c, c_row, factor);
  for (int64_t i = 0; i < rows; i += kRows)
    micro<N, kAdd>(depth, {a.at + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row,
                   factor ? factor + i : factor);
}

// C[rows, columns] (+)= A[rows, depth] B[depth, columns]. Columns are a multiple of 16.
template <bool kAdd>
static void product(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b, int64_t b_row, float* c,
                    int64_t c_row, const float* factor = nullptr) {
  for (int64_t j = 0; j < columns; j += kVectors * kLanes)
    columns_of<kAdd>((columns - j) / kLanes, rows, depth, a, b + j, b_row, c + j, c_row, factor);
}

// 2^x for x up to 126; zero below -126. Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
static inline Vector exp2_or_zero(Vector x) {
  const Vector whole = x + 12582912.0f, r = x - (whole - 12582912.0f);
  Vector p = r * 1.5353362e-4f + 1.3398874e-3f;  // minimax, 2e-9
  p = p * r + 9.618437e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.931472e-1f;
  p = p * r + 1.0f;
  return x < -126.0f ? Vector{} : (Vector)((Integers)p + ((Integers)whole << 23));
}

struct Task {
  int64_t first, queries, keys, shift, window, group;  // stream row of query 0; it sees the keys up to `shift`
  const int64_t* index;

  // The keys [low, high) that query i sees
  int64_t low(int64_t i) const { return window > 0 ? most(0, i + shift - window + 1) : 0; }
  int64_t high(int64_t i) const { return most(0, least(keys, i + shift + 1)); }
};
static Task task_of(const TreeAttention& t, int64_t run) {
  const int64_t first = t.q_offsets[run], queries = t.q_offsets[run + 1] - first;
  const int64_t keys = t.k_offsets[run + 1] - t.k_offsets[run];
  return {first, queries, keys, keys - queries, t.window, t.heads / t.kv_heads, t.k_index + t.k_offsets[run]};
}
static int64_t most_keys(const TreeAttention& t) {
  int64_t keys = 0;
  for (int64_t run = 0; run < t.runs; ++run) keys = most(keys, task_of(t, run).keys);
  return round_up(keys);
}

static float* pack_keys(const Rows& x, int64_t head, const Task& task, int64_t count, int64_t width, float* to) {
  for (int64_t j = 0; j < count; ++j) memcpy(to + j * width, row_of(x, task.index[j], head), width * 4);
  return to + round_up(count) * width;
}

// `rows` tokens of x as columns: [width][48], times `sign`, zeros beyond.
static float* pack_queries(const Rows& x, int64_t token, int64_t head, int64_t rows, int64_t width, float sign,
                           float* to) {
  for (int64_t i = 0; i < kQueries; i += kLanes) {
    const float* from[kLanes];
    float signs[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      from[lane] = row_of(x, token + least(i + lane, rows - 1), head);
      signs[lane] = i + lane < rows ? sign : 0;
    }
    for (int64_t d = 0; d < width; ++d)
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) to[d * kQueries + i + lane] = from[lane][d] * signs[lane];
  }
  return to + width * kQueries;
}

// Scores [keys][48 queries] times |scale| log2(e) are exponents of 2; the queries carry the scale's sign, or zero.
static float sign_of(float scale) { return scale > 0 ? 1 : scale < 0 ? -1 : scale; }
static float base2_of(float scale) { return scale == 0 ? kLog2E : sign_of(scale) * scale * kLog2E; }

// -inf where query i0 + i does not see key j0 + j.
static void mask(const Task& task, float* scores, int64_t count, int64_t rows, int64_t i0, int64_t j0) {
  if (task.high(i0) >= j0 + count && task.low(i0 + rows - 1) <= j0) return;  // all see all
  for (int64_t j = 0; j < count; ++j) {
    const int64_t own = j0 + j - task.shift - i0;  // the query that stands on this key
    const int begin = int(most(0, least(kQueries, own)));
    const int end = task.window > 0 ? int(most(0, least(kQueries, own + task.window))) : kQueries;
#pragma omp simd
    for (int i = 0; i < kQueries; ++i) {
      float& s = scores[j * kQueries + i];
      s = i >= begin && i < end ? s : -INFINITY;
    }
  }
}

struct Softmax {  // of 48 queries: the largest score yet, the sum of weights relative to it, what moved earlier sums
  float top[kQueries], total[kQueries], factor[kQueries];

  void start() {
    for (int i = 0; i < kQueries; ++i) top[i] = -INFINITY, total[i] = 0;
  }
  // Scores become weights.
  void take(float* scores, int64_t count, int64_t lanes, float base2) {
    for (int64_t i = 0; i < lanes; i += kLanes) {
      const Vector before = vector_at(top + i);
      Vector high = before, sum = {};
      for (int64_t j = 0; j < count; ++j) {
        const Vector s = vector_at(scores + j * kQueries + i);
        high = s > high ? s : high;
      }
      const Vector base = (high > -INFINITY ? high : Vector{}) * base2;
      for (int64_t j = 0; j < count; ++j) {
        Vector& s = vector_at(scores + j * kQueries + i);
        s = exp2_or_zero(s * base2 - base);
        sum += s;
      }
      // Exactly 1 where the maximum stayed (a fused multiply-subtract is not): what a query gets must not depend on how
      // many blocks of keys that it does not see its neighbours look at.
      const Vector moved = before == high ? Vector{} + 1 : exp2_or_zero(before * base2 - base);
      vector_at(top + i) = high, vector_at(factor + i) = moved;
      vector_at(total + i) = vector_at(total + i) * moved + sum;
    }
  }
};

// The queries [begin, end) of a task, each head of its group.
static void forward_task(const TreeAttention& t, const Task& task, int64_t kv, int64_t begin, int64_t end, float* out,
                         float* lse, float* room) {
  const int64_t width = t.width, keys = task.high(end - 1);
  float *k = room, *v = pack_keys(t.k, kv, task, keys, width, k), *q = pack_keys(t.v, kv, task, keys, width, v);
  const float base2 = base2_of(t.scale);
  Softmax softmax;
  for (int64_t h = kv * task.group; h < (kv + 1) * task.group; ++h)
    for (int64_t i0 = begin; i0 < end; i0 += kQueries) {
      const int64_t rows = least(kQueries, end - i0), lanes = round_up(rows, kLanes), token = task.first + i0;
      const int64_t stop = task.high(i0 + rows - 1);
      float *scores = pack_queries(t.q, token, h, rows, width, sign_of(t.scale), q), *sums = scores + kKeys * kQueries;
      memset(sums, 0, kQueries * width * 4);
      softmax.start();
      for (int64_t j0 = task.low(i0) / kKeys * kKeys; j0 < stop; j0 += kKeys) {
        const int64_t count = least(kKeys, stop - j0);
        product<false>(count, lanes, width, {k + j0 * width, width, 1}, q, kQueries, scores, kQueries);
        mask(task, scores, count, rows, i0, j0);
        softmax.take(scores, count, lanes, base2);
        product<true>(rows, width, count, {scores, 1, kQueries}, v + j0 * width, width, sums, width, softmax.factor);
      }
      for (int64_t i = 0; i < rows; ++i) {  // a query that sees no key gives zeros
        const float total = softmax.total[i], inverse = total == 0 ? 0 : 1 / total;
        float* to = out + ((token + i) * t.heads + h) * width;
        for (int64_t d = 0; d < width; ++d) to[d] = sums[i * width + d] * inverse;
        lse[(token + i) * t.heads + h] = total == 0 ? 0 : softmax.top[i] * base2 + ::log2f(total);
      }
    }
}

bool tree_forward(const TreeAttention& t, float* out, float* lse) {
  const int64_t size = 2 * most_keys(t) * t.width + kQueries * (2 * t.width + kKeys);
  Scratch scratch(size * t.threads * 4);
  if (!scratch.data) return false;
  // Few tasks are cut by their queries: what a query gets does not depend on its neighbours
  int64_t queries = 1;
  for (int64_t run = 0; run < t.runs; ++run) queries = most(queries, task_of(t, run).queries);
  const int64_t whole = t.runs * t.kv_heads, cut = whole < 4 * t.threads ? 4 * kQueries : queries;
  const int64_t cuts = (queries + cut - 1) / cut;
#pragma omp parallel for num_threads(t.threads) if (t.threads > 1) schedule(dynamic)
  for (int64_t n = 0; n < whole * cuts; ++n) {
    const Task task = task_of(t, n / cuts / t.kv_heads);
    const int64_t begin = n % cuts * cut, end = least(begin + cut, task.queries);
    float* room = reinterpret_cast<float*>(scratch.data) + omp_get_thread_num() * size;
    if (begin < end) forward_task(t, task, n / cuts % t.kv_heads, begin, end, out, lse, room);
  }
  return true;
}

// Scores become weights again; d loss / d weights becomes d loss / d scores, times the scale.
static void slopes_of(float* weights, float* slopes, int64_t count, int64_t lanes, const float* lse, const float* delta,
                      float base2, float scale) {
  for (int64_t i = 0; i < lanes; i += kLanes)
    for (int64_t at = i; at < count * kQueries; at += kQueries) {
      const Vector weight = exp2_or_zero(vector_at(weights + at) * base2 - vector_at(lse + i));
      vector_at(slopes + at) = weight * (vector_at(slopes + at) - vector_at(delta + i)) * scale;
      vector_at(weights + at) = weight;
    }
}

static void backward_task(const TreeAttention& t, const TreeGradient& g, const Task& task, int64_t kv, float* room) {
  // Keys and values packed, and room for their gradients
  const int64_t width = t.width, all = round_up(task.keys) * width;
  float *k = room, *v = pack_keys(t.k, kv, task, task.keys, width, k);
  float *d_k = pack_keys(t.v, kv, task, task.keys, width, v), *d_v = d_k + all, *q = d_v + all;
  memset(d_k, 0, 2 * all * 4);
  const float base2 = base2_of(t.scale);
  for (int64_t h = kv * task.group; h < (kv + 1) * task.group; ++h)
    for (int64_t i0 = 0; i0 < task.queries; i0 += kQueries) {
      // A block of queries: both sides as columns, delta = sum(grad out), log-sum-exp
      const int64_t rows = least(kQueries, task.queries - i0), lanes = round_up(rows, kLanes), token = task.first + i0;
      const int64_t stop = least(task.keys, round_up(task.high(i0 + rows - 1)));  // d_k and d_v add up whole rounds
      float* grad = pack_queries(t.q, token, h, rows, width, sign_of(t.scale), q);
      float* d_q = pack_queries(g.grad, token, h, rows, width, 1, grad);
      float *weights = d_q + kQueries * width, *slopes = weights + kKeys * kQueries;
      float lse[kQueries] = {}, delta[kQueries] = {};
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (token + i) * t.heads + h;
        const float *left = row_of(g.grad, token + i, h), *right = g.out + at * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; ++d) sum += left[d] * right[d];
        delta[i] = sum, lse[i] = g.lse[at];
      }
      // Against each block of keys that any of them sees
      memset(d_q, 0, kQueries * width * 4);
      const float *q_rows = row_of(t.q, token, h), *grad_rows = row_of(g.grad, token, h);
      for (int64_t j0 = task.low(i0) / kKeys * kKeys; j0 < stop; j0 += kKeys) {
        const int64_t count = least(kKeys, stop - j0), at = j0 * width;
        product<false>(count, lanes, width, {k + at, width, 1}, q, kQueries, weights, kQueries);
        product<false>(count, lanes, width, {v + at, width, 1}, grad, kQueries, slopes, kQueries);
        mask(task, weights, count, rows, i0, j0);
        slopes_of(weights, slopes, count, lanes, lse, delta, base2, t.scale);
        product<true>(count, width, rows, {weights, kQueries, 1}, grad_rows, g.grad.token, d_v + at, width);
        product<true>(count, width, rows, {slopes, kQueries, 1}, q_rows, t.q.token, d_k + at, width);
        product<true>(rows, width, count, {slopes, 1, kQueries}, k + at, width, d_q, width);
      }
      for (int64_t i = 0; i < rows; ++i)
        memcpy(g.d_q + ((token + i) * t.heads + h) * width, d_q + i * width, width * 4);
    }
  for (int64_t j = 0; j < task.keys; ++j) {
    const int64_t to = ((task.index - t.k_index + j) * t.kv_heads + kv) * width;
    memcpy(g.d_k + to, d_k + j * width, width * 4);
    memcpy(g.d_v + to, d_v + j * width, width * 4);
  }
}

bool tree_backward(const TreeAttention& t, const TreeGradient& g) {
  const int64_t size = 4 * most_keys(t) * t.width + kQueries * (3 * t.width + 2 * kKeys);
  Scratch scratch(size * t.threads * 4);
  if (!scratch.data) return false;
#pragma omp parallel for num_threads(t.threads) if (t.threads > 1) schedule(dynamic)
  for (int64_t n = 0; n < t.runs * t.kv_heads; ++n)
    backward_task(t, g, task_of(t, n / t.kv_heads), n % t.kv_heads,
                  reinterpret_cast<float*>(scratch.data) + omp_get_thread_num() * size);
  return true;
}

}  // namespace MMFAST_ISA
}  // namespace mmfast
#endif
