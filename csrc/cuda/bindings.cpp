// The CUDA ops as Python functions: in mmfast._C, and in the emulated module of the tests.
#include "bindings.h"
#include "cuda/ops.h"

namespace mmfast {

template <> inline constexpr size_t kNumbers<HeadOutcome> = 16;
template <> inline constexpr size_t kNumbers<HeadCombine> = 18;

void bind_cuda(pybind11::module_& m) {
#ifndef MMFAST_EMULATE
  bind(m, "cuda_runtime_version", cuda_runtime_version);
  bind(m, "cuda_driver_version", cuda_driver_version);
  m.attr("cuda_architectures") = MMFAST_CUDA_ARCHITECTURES;  // of the device code, as CMake names them
#endif
  bind(m, "cuda_splice", cuda_splice);
  bind(m, "cuda_segment_sum", cuda_segment_sum);
  bind(m, "cuda_fold_forward", cuda_fold_forward);
  bind(m, "cuda_fold_gradient", cuda_fold_gradient);
  bind(m, "cuda_fold_finish", cuda_fold_finish);
  bind(m, "cuda_head_outcome", cuda_head_outcome);
  bind(m, "cuda_head_combine", cuda_head_combine);
  bind(m, "cuda_preference_f32", cuda_preference<float>);
  bind(m, "cuda_preference_f64", cuda_preference<double>);
}

}  // namespace mmfast
