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
  m.def("cuda_head_outcome", [](Address stats, Address base, Address written, Address told, Address numbers,
                                Address bases, int64_t rows, int64_t vocab, int64_t tiles, double softcap,
                                double temperature, bool entropy, bool squares, bool total, bool entropy_grad,
                                bool normalise, Address stream) {
    cuda_head_outcome({at<float>(stats), at<float>(base), at<float>(written), at<float>(told), at<float>(numbers),
                       at<float>(bases), rows, vocab, tiles, softcap, temperature, entropy, squares, total,
                       entropy_grad, normalise}, stream);
  });
  m.def("cuda_head_combine", [](Address out, Address p, Address q, Address r, Address index, Address copies,
                                Address offsets, Address a, Address scale, Address b, Address c, int64_t rows, int64_t width, int64_t a_stride, int64_t b_stride,
                                int64_t q_stride, int dtype, int q_dtype, Address stream) {
    cuda_head_combine({at<void>(out), at<void>(p), at<void>(q), at<void>(r), at<int64_t>(index),
                       at<int64_t>(copies), at<int64_t>(offsets), at<float>(a),
                       at<float>(scale), at<float>(b), at<float>(c), rows, width, a_stride, b_stride, q_stride, dtype,
                       q_dtype}, stream);
  });
  bind_preference(m, "cuda", cuda_preference<float>, cuda_preference<double>);
}

}  // namespace mmfast
