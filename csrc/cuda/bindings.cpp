#include "cuda/bindings.h"

#include "cuda/ops.h"
#include "preference.h"

namespace py = pybind11;

namespace mmfast {
namespace {
using Address = uintptr_t;  // a tensor's data_ptr(), or a stream; 0 stands for "absent"
template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}
}  // namespace

void bind_cuda(py::module_& m) {
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

  py::class_<FoldTile>(m, "FoldTile", py::module_local())  // the tests load a second module
      .def(py::init([](Address tile, int64_t stride, int64_t rows, int64_t width, int dtype, Address bias,
                       Address targets, int64_t first, double softcap, double temperature) {
        return FoldTile{at<void>(tile), stride, rows, width, dtype, at<void>(bias), at<int64_t>(targets), first, softcap,
                        temperature};
      }));
  m.def("cuda_fold_forward", [](const FoldTile& tile, Address stats, int out_dtype, Address probs, int64_t probs_stride,
                                Address probs_z, int64_t probs_z_stride, Address stream) {
    cuda_fold_forward(tile, at<void>(stats), out_dtype, at<void>(probs), probs_stride, at<void>(probs_z), probs_z_stride,
                      stream);
  });
  m.def("cuda_fold_gradient", [](const FoldTile& tile, Address lse, Address a, Address b, Address d, int out_dtype,
                                 Address out, int64_t out_stride, Address stream) {
    cuda_fold_gradient(tile, at<void>(lse), at<void>(a), at<void>(b), at<void>(d), out_dtype, at<void>(out), out_stride,
                       stream);
  });
  m.def("cuda_fold_rescale", [](Address acc, int64_t stride, int64_t rows, int64_t width, Address factor,
                                Address stream) {
    cuda_fold_rescale(at<void>(acc), stride, rows, width, at<void>(factor), stream);
  });
  m.def("cuda_fold_finish", [](Address kept, int64_t stride, int64_t rows, int64_t columns, int dtype, Address scale,
                               int64_t scale_stride, int64_t tiles, int64_t width, Address targets, Address entry,
                               Address stream) {
    cuda_fold_finish(at<void>(kept), stride, rows, columns, dtype, at<void>(scale), scale_stride, tiles, width,
                     at<int64_t>(targets), at<void>(entry), stream);
  });

  m.def("cuda_preference_scratch", &cuda_preference_scratch);
  m.def("cuda_preference",
        [](int dtype, Address logps, Address index, Address weights, Address ref_logps, Address responses, Address pairs,
           Address pair_weights, Address delta, int64_t U, int64_t N, int64_t R, int64_t P, int kind, int divergence,
           bool average, bool sft_average, double beta, double smoothing, double sft_weight, double f_alpha, double tau,
           double simpo_margin, double ld_alpha, double scale, Address loss, Address metrics, Address grad,
           Address scratch, Address stream) {
          const PreferenceSpec spec{kind,    divergence, average, sft_average,  beta,     smoothing, sft_weight,
                                    f_alpha, tau,        simpo_margin, ld_alpha, scale};
          const PreferenceTensors tensors{at<void>(logps),        at<void>(weights), at<void>(ref_logps),
                                          at<void>(pair_weights), at<void>(delta),   at<int64_t>(index),
                                          at<int64_t>(pairs),     at<int32_t>(responses), U, N, R, P,
                                          at<void>(loss),         at<void>(metrics), at<void>(grad), at<void>(scratch)};
          cuda_preference(tensors, spec, dtype, stream);
        });
}

}  // namespace mmfast
