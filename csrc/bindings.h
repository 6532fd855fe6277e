// What both halves bind alike. Python sees addresses as integers; mmfast/ops checks dtypes, shapes and devices first.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "ops.h"
#include "preference.h"

namespace mmfast {
void bind_cuda(pybind11::module_& m);  // csrc/cuda/bindings.cpp

using Address = uintptr_t;  // a tensor's data_ptr(), or a stream; 0 stands for "absent"
template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline void bind_logit_tile(pybind11::module_& m) {
  pybind11::class_<LogitTile>(m, "LogitTile", pybind11::module_local())  // the tests load a second module
      .def(pybind11::init([](Address logits, int64_t rows, int64_t width, int64_t stride, int dtype, Address bias,
                             Address targets, int64_t first, double softcap, double temperature, Address out,
                             int64_t out_stride, int out_dtype) {
        return LogitTile{at<void>(logits), rows, width, stride, dtype, at<void>(bias), at<int64_t>(targets), first,
                         softcap, temperature, at<void>(out), out_stride, out_dtype};
      }));
}

// HALF_fold_forward and so on; HALF is "cpu" or "cuda".
inline void bind_folds(pybind11::module_& m, const std::string& half, FoldForward* forward, FoldGradient* gradient,
                       FoldFinish* finish) {
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def((half + "_fold_forward").c_str(), [=](const LogitTile& tile, Address stats, bool entropy, bool squares,
                                              bool total, Address out_z, int64_t out_z_stride, Address base,
                                              Address sums, int64_t sums_width, int64_t sums_stride, Address queue) {
    forward(tile, at<void>(stats), entropy, squares, total,
            {at<void>(out_z), out_z_stride, at<void>(base), at<void>(sums), sums_width, sums_stride}, queue);
  }, Unlocked());
  m.def((half + "_fold_gradient").c_str(), [=](const LogitTile& tile, Address lse, Address a, Address b, Address d,
                                               Address queue) {
    gradient(tile, at<void>(lse), at<void>(a), at<void>(b), at<void>(d), queue);
  }, Unlocked());
  m.def((half + "_fold_finish").c_str(), [=](Address kept, Address scale, Address entry, Address targets, int64_t rows,
                                             int64_t width, int64_t stride, int64_t tile_width, int dtype, Address queue) {
    finish(at<void>(kept), at<void>(scale), at<void>(entry), at<int64_t>(targets), rows, width, stride, tile_width, dtype,
           queue);
  }, Unlocked());
}

// HALF_preference: the tensors in the order of mmfast/ops/preference.py, their sizes, the loss's specification, results.
template <class T>
using PreferenceLoss = void(const PreferenceTensors<T>& tensors, const PreferenceSpec& spec, uintptr_t stream);
inline void bind_preference(pybind11::module_& m, const std::string& half, PreferenceLoss<float>* of_f32,
                            PreferenceLoss<double>* of_f64) {
  m.def((half + "_preference").c_str(),
        [=](int dtype, Address logps, Address index, Address weights, Address ref_logps, Address responses,
            Address pairs, Address pair_weights, Address delta, Address copies, Address offsets, int64_t U, int64_t N,
            int64_t R, int64_t P, int kind, int divergence, bool average, bool sft_average, double beta,
            double smoothing, double sft_weight, double f_alpha, double tau, double simpo_margin, double ld_alpha,
            double scale, Address loss, Address metrics, Address grad, Address scratch, Address stream) {
          const PreferenceSpec spec{kind,    divergence, average,      sft_average, beta, smoothing, sft_weight,
                                    f_alpha, tau,        simpo_margin, ld_alpha,    scale};
          const auto call = [&](auto* loss_of, auto type) {
            using T = decltype(type);
            loss_of({at<T>(logps), at<T>(weights), at<T>(ref_logps), at<T>(pair_weights), at<T>(delta),
                     at<int64_t>(index), at<int64_t>(pairs), at<int32_t>(responses), at<int64_t>(copies),
                     at<int64_t>(offsets), U, N, R, P, at<T>(loss), at<T>(metrics), at<T>(grad), at<double>(scratch)},
                    spec, stream);
          };
          if (dtype == kF64) call(of_f64, double());
          else if (dtype == kF32) call(of_f32, float());
          else throw std::invalid_argument("preference_loss: no kernel for dtype code " + std::to_string(dtype));
        });
}

}  // namespace mmfast
