// The native ops on a CUDA device: the same pointers, work queued on `stream` (a cudaStream_t), nothing waited for.
#pragma once
#include <cstdint>

#include "../ops.h"

namespace mmfast {

// out[t] = features[t] >= 0 ? images[features[t]] : table[tokens[t]]; a row is row_bytes bytes. tokens, features: [rows]
void cuda_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                 int64_t rows, int64_t row_bytes, uintptr_t stream);
SegmentSum cuda_segment_sum;

// The folds over a tile of logits.
FoldForward cuda_fold_forward;
FoldGradient cuda_fold_gradient;
FoldFinish cuda_fold_finish;

// What a call of the head does once with its rows (mmfast/ops/head/outcome.py), all fp32. stats [8, rows] -> told
// [1 + entropy_grad, rows], numbers [14, rows]; bases [tiles, rows] or null.
struct HeadOutcome {
  const float *stats, *base, *written;  // base, written: what E is relative to and its sum (or null), rows of stats
  float *told, *numbers, *bases;
  int64_t rows, vocab, tiles;
  double softcap, temperature;
  bool entropy, squares, total, entropy_grad, normalise;
};
void cuda_head_outcome(const HeadOutcome& call, uintptr_t stream);
// out[t] = a[t] scale[t] p[index[t]] + b[t] (q[t] + c[t] r[t]), without what is null; with offsets [rows + 1] out[i] is the
// sum over t = copies[offsets[i]], ... of that. p and out [*, width] of dtype, q and r
// of q_dtype, which is fp32 or dtype.
struct HeadCombine {
  void* out;
  const void *p, *q, *r;
  const int64_t *index, *copies, *offsets;
  const float *a, *scale, *b, *c;
  int64_t rows, width, a_stride, b_stride, q_stride;  // q_stride: r's too
  int dtype, q_dtype;
};
void cuda_head_combine(const HeadCombine& call, uintptr_t stream);

// preference_loss in one launch; tensors.scratch has room for P + N numbers.
template <class T>
void cuda_preference(const PreferenceTensors<T>& tensors, const PreferenceSpec& spec, uintptr_t stream);

}  // namespace mmfast
