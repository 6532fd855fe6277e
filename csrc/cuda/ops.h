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

// The folds over a tile of logits.
FoldForward cuda_fold_forward;
FoldGradient cuda_fold_gradient;
FoldFinish cuda_fold_finish;

// preference_loss in one launch; tensors.scratch has cuda_preference_scratch(U, N, R, P) bytes.
int64_t cuda_preference_scratch(int64_t U, int64_t N, int64_t R, int64_t P);
PreferenceLoss cuda_preference;

}  // namespace mmfast
