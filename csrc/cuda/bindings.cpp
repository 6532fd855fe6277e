// The CUDA ops as Python functions: in mmfast._C, and in the emulated module of the tests.
#include "bindings.h"
#include "cuda/ops.h"

#ifndef MMFAST_EMULATE
#include <cuda_runtime_api.h>

// For `mmfast doctor`, as 1000 * major + 10 * minor: the runtime linked in, and the newest that the driver knows (0: no driver).
template <cudaError_t (*kAsk)(int*)>
int version_of() {
  int version = 0;
  kAsk(&version);
  return version;
}
#endif

namespace mmfast {

template <> inline constexpr size_t kNumbers<HeadOutcome> = 16;
template <> inline constexpr size_t kNumbers<HeadCombine> = 18;

void bind_cuda(pybind11::module_& m) {
#ifndef MMFAST_EMULATE
  bind(m, "cuda_runtime_version", version_of<cudaRuntimeGetVersion>);
  bind(m, "cuda_driver_version", version_of<cudaDriverGetVersion>);
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
