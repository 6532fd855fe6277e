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

// The folds over a tile of logits: all statistics are kept, whichever are asked for.
FoldForward cuda_fold_forward;
FoldGradient cuda_fold_gradient;
FoldRescale cuda_fold_rescale;
FoldFinish cuda_fold_finish;

// preference_loss in one launch; tensors.scratch has room for P + N numbers.
template <class T>
void cuda_preference(const PreferenceTensors<T>& tensors, const PreferenceSpec& spec, uintptr_t stream);

}  // namespace mmfast
