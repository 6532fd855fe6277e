// preference_loss on CPU: the sums of every entry, the losses of every pair, the ordered gradient; one call.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "ops.h"
#include "preference.h"

namespace mmfast {
namespace {

[[noreturn]] void fail(const std::string& problem) { throw std::invalid_argument("preference_loss: " + problem); }

template <class T>
void check(const PreferenceTensors<T>& t) {
  const auto [index, responses, pairs, U, N, R, P] = std::tie(t.index, t.responses, t.pairs, t.U, t.N, t.R, t.P);
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

// Sums of tokens [begin, end) in fp64; four chains hide the latency of the additions.
template <class T>
SideSums range_sums(const PreferenceTensors<T>& t, int64_t begin, int64_t end) {
  double own[4] = {}, ref[4] = {}, norm[4] = {};
  for (int64_t n = begin; n < end; ++n) {
    const int lane = int(n - begin) & 3;
    const double w = t.weights ? double(t.weights[n]) : 1.0;
    norm[lane] += w;
    own[lane] += w * double(t.logps[t.index ? t.index[n] : n]);
    if (t.ref_logps) ref[lane] += w * double(t.ref_logps[n]);
  }
  const double sum = (own[0] + own[1]) + (own[2] + own[3]);
  return {sum, (ref[0] + ref[1]) + (ref[2] + ref[3]), (norm[0] + norm[1]) + (norm[2] + norm[3]), sum};
}

}  // namespace

template <class T>
void cpu_preference(const PreferenceTensors<T>& t, const PreferenceSpec& spec, uintptr_t) {
  check(t);
  const bool cuts = spec.ld_alpha != 1;
  std::vector<SideSums> sums(t.R);
#pragma omp parallel for schedule(static) if (t.N > 65536)
  for (int64_t e = 0; e < t.R; ++e) sums[e] = range_sums(t, t.responses[e], t.responses[e + 1]);

  // Slopes go to entries; where ld_alpha cuts them, to tokens at once.
  std::vector<double> slope(cuts || !t.grad ? 0 : t.R), by_logp(t.grad ? t.U : 0);
  auto add = [&](int64_t begin, int64_t end, double by) {
    for (int64_t n = begin; n < end; ++n) by_logp[t.index ? t.index[n] : n] += t.weights ? by * double(t.weights[n]) : by;
  };
  double total = 0;
  for (int64_t p = 0; p < t.P; ++p) {
    const int64_t entry[2] = {t.pairs[2 * p], t.pairs[2 * p + 1]};
    int64_t begin[2], end[2], cut[2];
    SideSums side[2];
    for (int i = 0; i < 2; ++i) begin[i] = t.responses[entry[i]], end[i] = t.responses[entry[i] + 1];
    for (int i = 0; i < 2; ++i) {
      side[i] = sums[entry[i]];
      cut[i] = cuts ? begin[i] + std::min(end[0] - begin[0], end[1] - begin[1]) : end[i];
      if (cut[i] == end[i]) continue;
      const SideSums head = range_sums(t, begin[i], cut[i]), tail = range_sums(t, cut[i], end[i]);
      side[i].own = head.own + spec.ld_alpha * tail.own;
      side[i].ref = head.ref + spec.ld_alpha * tail.ref;
    }
    const PairLoss loss = pair_loss(spec, side[0], side[1], t.delta ? double(*t.delta) : 0,
                                    t.pair_weights ? double(t.pair_weights[p]) : 1);
    total += loss.metrics[0];
    for (int i = 0; i < 6; ++i) t.metrics[i * t.P + p] = T(loss.metrics[i]);
    for (int i = 0; i < 2 && t.grad; ++i) {
      if (!cuts) slope[entry[i]] += loss.by_s[i] + loss.by_whole[i];
      else add(begin[i], cut[i], loss.by_s[i] + loss.by_whole[i]);
      add(cut[i], end[i], loss.by_s[i] * spec.ld_alpha + loss.by_whole[i]);
    }
  }
  *t.loss = T(total * spec.scale);
  if (!t.grad) return;
  for (int64_t e = 0; e < int64_t(slope.size()); ++e) add(t.responses[e], t.responses[e + 1], slope[e]);
  for (int64_t u = 0; u < t.U; ++u) t.grad[u] = T(by_logp[u]);
}
template void cpu_preference(const PreferenceTensors<float>&, const PreferenceSpec&, uintptr_t);
template void cpu_preference(const PreferenceTensors<double>&, const PreferenceSpec&, uintptr_t);

}  // namespace mmfast
