// The native ops on a CUDA device: the same pointers, work queued on `stream` (a cudaStream_t), nothing waited for.
#pragma once
#include <cstdint>

#include "../ops.h"

namespace mmfast {

// CUDA versions as 1000 * major + 10 * minor; the driver's is 0 where there is none.
int cuda_runtime_version();
int cuda_driver_version();

// out[t] = features[t] >= 0 ? images[features[t]] : table[tokens[t]]; a row is row_bytes bytes. tokens, features: [rows]
void cuda_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                 int64_t rows, int64_t row_bytes, uintptr_t stream);
// out[s] = sum of values[order[i]], i in [offsets[s], offsets[s+1]), in that order. values [*, width], out [segments, width]
void cuda_segment_sum(const void* values, const int64_t* order, const int64_t* offsets, void* out, int64_t segments,
                      int64_t width, int dtype, uintptr_t stream);

// One tile of raw logits [rows, width], as the folds of mmfast/ops/head/folds.py take it. fp32, bf16 or fp16; sums are fp32.
struct FoldTile {
  const void* tile;
  int64_t stride;  // between rows, in elements
  int64_t rows, width;
  int dtype;
  const void* bias;  // fp32 [width], or null
  const int64_t* targets;
  int64_t first;  // the tile's first column in the vocabulary
  double softcap, temperature;  // softcap 0: none
};
void cuda_fold_forward(const FoldTile& tile, void* stats, int out_dtype, void* probs, int64_t probs_stride, void* probs_z,
                       int64_t probs_z_stride, uintptr_t stream);
void cuda_fold_gradient(const FoldTile& tile, const void* lse, const void* a, const void* b, const void* d, int out_dtype,
                        void* out, int64_t out_stride, uintptr_t stream);
void cuda_fold_rescale(void* acc, int64_t stride, int64_t rows, int64_t width, const void* factor, uintptr_t stream);
void cuda_fold_finish(void* kept, int64_t stride, int64_t rows, int64_t columns, int dtype, const void* scale,
                      int64_t scale_stride, int64_t tiles, int64_t width, const int64_t* targets, const void* entry,
                      uintptr_t stream);

// preference_loss (csrc/cpu/preference.cpp): loss, metrics [6, P] and, unless null, the gradient [U], in one launch.
struct PreferenceTensors {
  const void *logps, *weights, *ref_logps, *pair_weights, *delta;  // fp32 or fp64; all but logps may be null
  const int64_t *index, *pairs;                                    // index may be null
  const int32_t* responses;
  int64_t U, N, R, P;
  void *loss, *metrics, *grad;
  void* scratch;  // cuda_preference_scratch(U, N, R, P) bytes
};
int64_t cuda_preference_scratch(int64_t U, int64_t N, int64_t R, int64_t P);
void cuda_preference(const PreferenceTensors& tensors, const PreferenceSpec& spec, int dtype, uintptr_t stream);

}  // namespace mmfast
