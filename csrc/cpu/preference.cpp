// preference_loss on CPU: the sums of every entry, the losses of every pair, the ordered gradient; one call.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"
#include "preference.h"

namespace mmfast {
namespace {

[[noreturn]] void fail(const std::string& problem) { throw std::invalid_argument("preference_loss: " + problem); }

void check(const int64_t* index, const int32_t* responses, const int64_t* pairs, int64_t U, int64_t N, int64_t R,
           int64_t P) {
  if (R < 0) fail("responses needs at least one entry (a lone 0 where there is nothing)");
  if (responses[0] != 0 || responses[R] != N)
    fail("responses must start at 0 and end at " + std::to_string(N) + "; it runs from " +
         std::to_string(responses[0]) + " to " + std::to_string(responses[R]));
  for (int64_t e = 0; e < R; ++e)
    if (responses[e + 1] < responses[e])
      fail("responses must never fall; it does at entry " + std::to_string(e + 1));
  for (int64_t i = 0; i < 2 * P; ++i)
    if (pairs[i] < 0 || pairs[i] >= R)
      fail("pairs holds " + std::to_string(pairs[i]) + ", outside [0, " + std::to_string(R) + ")");
  if (!index) return;
  for (int64_t n = 0; n < N; ++n)
    if (index[n] < 0 || index[n] >= U)
      fail("index holds " + std::to_string(index[n]) + ", outside [0, " + std::to_string(U) + ")");
}

template <typename T>
struct Data {
  const T *logps, *weights, *ref;
  const int64_t* index;
  double logp(int64_t n) const { return double(logps[index ? index[n] : n]); }
  double weight(int64_t n) const { return weights ? double(weights[n]) : 1.0; }
};

struct Sums {
  double own = 0, ref = 0, norm = 0;
};

// Sums of tokens [begin, end) in fp64; four chains hide the latency of the additions.
template <typename T>
Sums range_sums(const Data<T>& d, int64_t begin, int64_t end) {
  double own[4] = {}, ref[4] = {}, norm[4] = {};
  for (int64_t n = begin; n < end; ++n) {
    const int lane = int(n - begin) & 3;
    const double w = d.weight(n);
    norm[lane] += w;
    own[lane] += w * d.logp(n);
    if (d.ref) ref[lane] += w * double(d.ref[n]);
  }
  return {(own[0] + own[1]) + (own[2] + own[3]), (ref[0] + ref[1]) + (ref[2] + ref[3]),
          (norm[0] + norm[1]) + (norm[2] + norm[3])};
}

// One side of a pair: S, S_ref, n, and S without ld_alpha (the SFT term's), averaged where the spec says so.
struct Side {
  double s, ref, norm, whole, unit;
  int64_t cut;  // tokens from here on count ld_alpha
};

template <typename T>
void run(const Data<T>& d, const int32_t* responses, const int64_t* pairs, const T* pair_weights, const T* delta,
         int64_t U, int64_t N, int64_t R, int64_t P, const PreferenceSpec& spec, T* loss, T* metrics, T* grad) {
  const bool cuts = spec.ld_alpha != 1;
  std::vector<Sums> sums(R);
#pragma omp parallel for schedule(static) if (N > 65536)
  for (int64_t e = 0; e < R; ++e) sums[e] = range_sums(d, responses[e], responses[e + 1]);

  std::vector<double> slope(cuts || !grad ? 0 : R), by_logp(grad ? U : 0);
  auto add = [&](int64_t begin, int64_t end, double by) {
    for (int64_t n = begin; n < end; ++n) by_logp[d.index ? d.index[n] : n] += by * d.weight(n);
  };
  double total = 0;
  for (int64_t p = 0; p < P; ++p) {
    const int64_t entry[2] = {pairs[2 * p], pairs[2 * p + 1]};
    const int64_t shorter = std::min(responses[entry[0] + 1] - responses[entry[0]],
                                     responses[entry[1] + 1] - responses[entry[1]]);
    Side side[2];
    for (int i = 0; i < 2; ++i) {
      const Sums& all = sums[entry[i]];
      const double norm = all.norm == 0 ? 1 : all.norm, unit = spec.average ? 1 / norm : 1;
      side[i] = {all.own * unit, all.ref * unit, norm, all.own * unit, unit, responses[entry[i]] + shorter};
      if (cuts) {
        const Sums head = range_sums(d, responses[entry[i]], side[i].cut);
        const Sums tail = range_sums(d, side[i].cut, responses[entry[i] + 1]);
        side[i].s = (head.own + spec.ld_alpha * tail.own) * unit;
        side[i].ref = (head.ref + spec.ld_alpha * tail.ref) * unit;
      }
    }
    const double a[2] = {side[0].s - side[0].ref, side[1].s - side[1].ref};
    const PairTerms terms = pair_terms(spec, a[0], a[1], side[0].norm, side[1].norm, delta ? double(*delta) : 0);
    const double weight = pair_weights ? double(pair_weights[p]) : 1;
    const double sft = spec.sft_average && !spec.average ? spec.sft_weight / side[0].norm : spec.sft_weight;
    const double value = weight * (terms.value - sft * side[0].whole);
    total += value;
    const double row[6] = {value, spec.beta * (a[0] - a[1]), spec.beta * a[0], spec.beta * a[1], side[0].s, side[1].s};
    for (int i = 0; i < 6; ++i) metrics[i * P + p] = T(row[i]);
    if (!grad) continue;
    const double d_s[2] = {terms.d_chosen, terms.d_rejected}, d_whole[2] = {-sft, 0};
    for (int i = 0; i < 2; ++i) {
      const double factor = weight * spec.scale * side[i].unit;
      if (!cuts) {
        slope[entry[i]] += factor * (d_s[i] + d_whole[i]);
        continue;
      }
      add(responses[entry[i]], side[i].cut, factor * (d_s[i] + d_whole[i]));
      add(side[i].cut, responses[entry[i] + 1], factor * (d_s[i] * spec.ld_alpha + d_whole[i]));
    }
  }
  *loss = T(total * spec.scale);
  if (!grad) return;
  if (!cuts)
    for (int64_t e = 0; e < R; ++e) add(responses[e], responses[e + 1], slope[e]);
  for (int64_t u = 0; u < U; ++u) grad[u] = T(by_logp[u]);
}

template <typename T>
void typed(const PreferenceTensors& t, const PreferenceSpec& spec) {
  const Data<T> d{static_cast<const T*>(t.logps), static_cast<const T*>(t.weights), static_cast<const T*>(t.ref_logps),
                  t.index};
  run<T>(d, t.responses, t.pairs, static_cast<const T*>(t.pair_weights), static_cast<const T*>(t.delta), t.U, t.N, t.R,
         t.P, spec, static_cast<T*>(t.loss), static_cast<T*>(t.metrics), static_cast<T*>(t.grad));
}

}  // namespace

void cpu_preference(const PreferenceTensors& t, const PreferenceSpec& spec, int dtype, uintptr_t) {
  check(t.index, t.responses, t.pairs, t.U, t.N, t.R, t.P);
  if (dtype == kF64) typed<double>(t, spec);
  else typed<float>(t, spec);
}

}  // namespace mmfast
