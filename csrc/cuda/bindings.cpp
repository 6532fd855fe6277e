// The CUDA ops as Python functions: in mmfast._C, and in the emulated module of the tests.
#include "bindings.h"

#include "cuda/ops.h"

namespace mmfast {

void bind_cuda(pybind11::module_& m) {
#ifndef MMFAST_EMULATE
  m.def("cuda_runtime_version", &cuda_runtime_version);
  m.def("cuda_driver_version", &cuda_driver_version);
  m.attr("cuda_architectures") = MMFAST_CUDA_ARCHITECTURES;  // of the device code, as CMake names them
#endif
  m.def("cuda_splice", [](Address tokens, Address features, Address table, Address images, Address out, int64_t rows,
                          int64_t row_bytes, Address stream) {
    cuda_splice(at<int64_t>(tokens), at<int64_t>(features), at<void>(table), at<void>(images), at<void>(out), rows,
                row_bytes, stream);
  });
  m.def("cuda_segment_sum", [](Address values, Address order, Address offsets, Address out, int64_t segments,
                               int64_t width, int dtype, Address stream) {
    cuda_segment_sum(at<void>(values), at<int64_t>(order), at<int64_t>(offsets), at<void>(out), segments, width, dtype,
                     stream);
  });

  bind_folds(m, "cuda", cuda_fold_forward, cuda_fold_gradient, cuda_fold_finish);
  m.def("cuda_preference_scratch", &cuda_preference_scratch);
  bind_preference(m, "cuda", cuda_preference);
}

}  // namespace mmfast
