// One pair's preference loss and its derivatives, in closed form: shared by the CPU and CUDA kernels, and line for line
// as in kernels/preference_terms.py. Formulas and papers: docs/ops/preference_loss.md.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MMFAST_PAIR __host__ __device__ inline
#else
#define MMFAST_PAIR inline
#endif

namespace mmfast {

// The codes of mmfast/ops/kinds.py, in its order.
enum PreferenceKind : int {
  kSigmoid, kHinge, kIpo, kSigmoidNorm, kRobust, kExoPair, kNcaPair, kBcoPair,
  kSppoHard, kApoZero, kApoDown, kDiscopop, kOrpo, kSimpo, kSft
};
enum Divergence : int { kReverseKl, kForwardKl, kJsDivergence, kAlphaDivergence };

struct PreferenceSpec {
  int kind = kSigmoid, divergence = kReverseKl;
  bool average = false, sft_average = false;
  double beta = 0.1, smoothing = 0, sft_weight = 0, f_alpha = 0, tau = 0, simpo_margin = 0, ld_alpha = 1, scale = 1;
};

// The arrays of one call. Floats are fp32 or fp64; they may be null but for logps, as may index.
template <class T>
struct PreferenceTensors {
  const T* logps;
  const int64_t* index;
  const T *weights, *ref_logps;
  const int32_t* responses;
  const int64_t* pairs;
  const T *pair_weights, *delta;
  const int64_t *copies, *offsets;  // the inverse of index, on a GPU only: log-prob u scores copies[offsets[u]..offsets[u+1])
  int64_t U, N, R, P;
  T *loss, *metrics, *grad;  // grad may be null
  double* scratch;           // on a GPU only
};

struct PairTerms {
  double value, d_chosen, d_rejected;  // the loss and its derivatives by the two log-ratios
};

MMFAST_PAIR double log_sigmoid(double x) { return fmin(x, 0.0) - log1p(exp(-fabs(x))); }
MMFAST_PAIR double sigmoid(double x) {
  const double e = exp(-fabs(x));
  return (x >= 0 ? 1.0 : e) / (1.0 + e);
}

// f'(e^a) of the divergence and its derivative by a. Exponents stop at 80, where fp32 still holds the result.
MMFAST_PAIR double divergence_score(const PreferenceSpec& s, double a, double* slope) {
  if (s.divergence == kForwardKl) {
    const double e = exp(fmin(-a, 80.0));
    *slope = -a > 80.0 ? 0.0 : e;
    return 1.0 - e;
  }
  if (s.divergence == kJsDivergence) {
    *slope = sigmoid(-a);
    return 0.693147180559945309417 + log_sigmoid(a);
  }
  if (s.divergence == kAlphaDivergence && fabs(s.f_alpha - 1.0) >= 1e-6) {
    const double t = (s.f_alpha - 1.0) * a, e = exp(fmin(t, 80.0));
    *slope = t > 80.0 ? 0.0 : e;
    return expm1(fmin(t, 80.0)) / (s.f_alpha - 1.0);
  }
  *slope = 1.0;
  return a;
}

// a = S - S_ref of each side (S averaged where the spec says so), n = its sum of weights.
MMFAST_PAIR PairTerms pair_terms(const PreferenceSpec& s, double a_c, double a_r, double n_c, double n_r, double delta) {
  const double b = s.beta, eps = s.smoothing;
  const bool mean = (s.kind == kIpo || s.kind == kSigmoidNorm || s.kind == kOrpo || s.kind == kSimpo) && !s.average;
  const double i_c = mean && n_c != 0 ? 1.0 / n_c : 1.0, i_r = mean && n_r != 0 ? 1.0 / n_r : 1.0;
  switch (s.kind) {
    case kNcaPair: {
      const double c = b * a_c, r = b * a_r;
      return {-log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r), b * (0.5 * sigmoid(c) - sigmoid(-c)),
              0.5 * b * sigmoid(r)};
    }
    case kBcoPair: {
      const double c = b * a_c - delta, r = b * a_r - delta;
      return {-log_sigmoid(c) - log_sigmoid(-r), -b * sigmoid(-c), b * sigmoid(r)};
    }
    case kSppoHard: {
      const double c = a_c - 0.5 / b, r = a_r + 0.5 / b;
      return {c * c + r * r, 2 * c, 2 * r};
    }
    case kApoZero: {
      const double c = b * a_c, r = b * a_r;
      return {sigmoid(-c) + sigmoid(r), -b * sigmoid(c) * sigmoid(-c), b * sigmoid(r) * sigmoid(-r)};
    }
    case kApoDown: {
      const double c = b * a_c, m = b * (a_c - a_r), slope = b * sigmoid(m) * sigmoid(-m);
      return {sigmoid(c) + sigmoid(-m), b * sigmoid(c) * sigmoid(-c) - slope, slope};
    }
    case kOrpo: {  // log-odds of the average log-probability; 1 - p is at least fp32's epsilon
      const double c = a_c * i_c, r = a_r * i_r, top = -1.1920928955078125e-07;
      const double e_c = -expm1(fmin(c, top)), e_r = -expm1(fmin(r, top));
      const double x = (c - log(e_c)) - (r - log(e_r)), slope = -b * sigmoid(-x);
      return {-c - b * log_sigmoid(x), (slope / e_c - 1.0) * i_c, -slope / e_r * i_r};
    }
    case kSft: return {-a_c, -1.0, 0.0};
    default: break;
  }
  double slope_c, slope_r;
  const double score = divergence_score(s, a_c, &slope_c) * i_c - divergence_score(s, a_r, &slope_r) * i_r;
  double value, slope, x = b * score, unit = b;
  switch (s.kind) {
    case kHinge:
      value = x >= 1 ? 0 : 1 - x;
      slope = x >= 1 ? 0 : -1;
      break;
    case kIpo:
      x = score - 0.5 / b;
      value = x * x;
      slope = 2 * x;
      unit = 1;
      break;
    case kRobust:
      value = (-(1 - eps) * log_sigmoid(x) + eps * log_sigmoid(-x)) / (1 - 2 * eps);
      slope = (-(1 - eps) * sigmoid(-x) - eps * sigmoid(x)) / (1 - 2 * eps);
      break;
    case kExoPair:
      value = sigmoid(x) * (log_sigmoid(x) - log1p(-eps)) + sigmoid(-x) * (log_sigmoid(-x) - log(eps));
      slope = sigmoid(x) * sigmoid(-x) * (x + log(eps) - log1p(-eps));
      break;
    case kDiscopop: {
      const double logistic = -log_sigmoid(x), gate = sigmoid(x / s.tau), closed = sigmoid(-x / s.tau);
      const double exponential = exp(-x + log_sigmoid(x / s.tau));
      value = logistic * closed + exponential;
      slope = -sigmoid(-x) * closed - logistic * gate * closed / s.tau + exponential * (closed / s.tau - 1);
      break;
    }
    default:  // sigmoid, sigmoid_norm, simpo
      if (s.kind == kSimpo) x -= s.simpo_margin;
      value = -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x);
      slope = -(1 - eps) * sigmoid(-x) + eps * sigmoid(x);
  }
  return {value, slope * unit * slope_c * i_c, -slope * unit * slope_r * i_r};
}

// Sums over an entry's tokens: of w logp and w ref (ld_alpha's share of those behind the shorter length), of w, and of
// w logp in full.
struct SideSums {
  double own = 0, ref = 0, norm = 0, whole = 0;
};
// What a pair adds. The slope of the log-prob of a token of side i is w (share by_s[i] + by_whole[i]).
struct PairLoss {
  double metrics[6];  // the value first
  double by_s[2], by_whole[2];
};

MMFAST_PAIR PairLoss pair_loss(const PreferenceSpec& s, SideSums c, SideSums r, double delta, double weight) {
  if (c.norm == 0) c.norm = 1;
  if (r.norm == 0) r.norm = 1;
  const double unit_c = s.average ? 1 / c.norm : 1, unit_r = s.average ? 1 / r.norm : 1;
  const double s_c = c.own * unit_c, s_r = r.own * unit_r, a_c = s_c - c.ref * unit_c, a_r = s_r - r.ref * unit_r;
  const PairTerms terms = pair_terms(s, a_c, a_r, c.norm, r.norm, delta);
  const double sft = s.sft_average && !s.average ? s.sft_weight / c.norm : s.sft_weight, factor = weight * s.scale;
  return {{weight * (terms.value - sft * c.whole * unit_c), s.beta * (a_c - a_r), s.beta * a_c, s.beta * a_r, s_c, s_r},
          {factor * unit_c * terms.d_chosen, factor * unit_r * terms.d_rejected},
          {-factor * unit_c * sft, 0}};
}

}  // namespace mmfast
