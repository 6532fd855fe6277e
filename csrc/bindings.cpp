// Python sees addresses as integers; the wrappers in mmfast/ops check dtypes, shapes and devices first.
#include <pybind11/pybind11.h>

#include "cuda/bindings.h"
#include "ops.h"
#include "preference.h"

namespace py = pybind11;
namespace {
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
using Address = uintptr_t;  // a tensor's data_ptr(); 0 stands for "absent"
}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "mmfast native ops: raw pointers in and out";
  m.attr("have_cuda") = bool(MMFAST_HAVE_CUDA);
  m.def("cpu_isa", &mmfast::cpu_isa);
  m.def("cpu_fold_forward", [](const mmfast::LogitTile& tile, Address stats, bool entropy, bool squares, bool total,
                               Address out_z, int64_t out_z_stride) {
    py::gil_scoped_release release;
    mmfast::cpu_fold_forward(tile, at<void>(stats), entropy, squares, total, at<void>(out_z), out_z_stride);
  });
  m.def("cpu_fold_gradient", [](const mmfast::LogitTile& tile, Address lse, Address a, Address b, Address d) {
    py::gil_scoped_release release;
    mmfast::cpu_fold_gradient(tile, at<void>(lse), at<void>(a), at<void>(b), at<void>(d));
  });
  m.def("cpu_rescale", [](Address acc, Address factor, int64_t rows, int64_t width, int64_t stride, int dtype,
                          int threads) {
    py::gil_scoped_release release;
    mmfast::cpu_rescale(at<void>(acc), at<void>(factor), rows, width, stride, dtype, threads);
  });
  m.def("cpu_finish", [](Address kept, Address scale, Address entry, Address targets, int64_t rows, int64_t width,
                         int64_t tile_width, int dtype, int threads) {
    py::gil_scoped_release release;
    mmfast::cpu_finish(at<void>(kept), at<void>(scale), at<void>(entry), at<const int64_t>(targets), rows, width,
                       tile_width, dtype, threads);
  });
  py::class_<mmfast::LogitTile>(m, "LogitTile")
      .def(py::init([](Address logits, int64_t rows, int64_t width, int64_t stride, int dtype, Address bias,
                       Address targets, int64_t first, double softcap, double temperature, Address out,
                       int64_t out_stride, int out_dtype, int threads) {
        return mmfast::LogitTile{at<void>(logits), rows, width, stride, dtype, at<void>(bias), at<const int64_t>(targets),
                                 first, softcap, temperature, at<void>(out), out_stride, out_dtype, threads};
      }));
  m.def("cpu_gemm_engines", &mmfast::cpu_gemm_engines);
  m.def("cpu_gemm_bf16", [](Address a, int64_t a_row, int64_t a_col, Address b, int64_t b_row, int64_t b_col, Address c,
                            int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, int threads,
                            const char* engine) {
    py::gil_scoped_release release;
    mmfast::cpu_gemm_bf16({at<const uint16_t>(a), at<const uint16_t>(b), at<float>(c), rows, columns, depth, a_row, a_col,
                           b_row, b_col, c_stride, accumulate, threads},
                          engine);
  });
  m.def("prefix_forest", [](Address symbols, Address starts, Address ends, int64_t branches, bool share,
                            Address parent, Address node_start, Address node_end, Address leaf) {
    return mmfast::prefix_forest(at<const int32_t>(symbols), at<const int64_t>(starts), at<const int64_t>(ends), branches,
                                 share, at<int32_t>(parent), at<int64_t>(node_start), at<int64_t>(node_end),
                                 at<int32_t>(leaf));
  });
  m.def("pack_step", [](Address parent, Address tokens, Address cost, int64_t nodes, Address leaves, int64_t pairs,
                        int64_t world, int64_t budget, Address pack_of, Address pack_tokens, Address pack_cost) {
    return mmfast::pack_step(at<const int32_t>(parent), at<const int64_t>(tokens), at<const int64_t>(cost), nodes,
                             at<const int32_t>(leaves), pairs, world, budget, at<int32_t>(pack_of),
                             at<int64_t>(pack_tokens), at<int64_t>(pack_cost));
  });

  m.def("cpu_preference",
        [](int dtype, Address logps, Address index, Address weights, Address ref_logps, Address responses, Address pairs,
           Address pair_weights, Address delta, int64_t U, int64_t N, int64_t R, int64_t P, int kind, int divergence,
           bool average, bool sft_average, double beta, double smoothing, double sft_weight, double f_alpha, double tau,
           double simpo_margin, double ld_alpha, double scale, Address loss, Address metrics, Address grad) {
          const mmfast::PreferenceSpec spec{kind,    divergence, average, sft_average,  beta,     smoothing, sft_weight,
                                            f_alpha, tau,        simpo_margin, ld_alpha, scale};
          mmfast::cpu_preference(dtype, at<void>(logps), at<int64_t>(index), at<void>(weights), at<void>(ref_logps),
                                 at<int32_t>(responses), at<int64_t>(pairs), at<void>(pair_weights), at<void>(delta), U,
                                 N, R, P, spec, at<void>(loss), at<void>(metrics), at<void>(grad));
        });
  m.def("changed_segments", [](Address a, int64_t a_size, Address b, int64_t b_size, int64_t min_match, bool autojunk,
                               int insertions, Address a_changed, Address b_changed) {
    py::gil_scoped_release release;
    mmfast::changed_segments(at<int32_t>(a), a_size, at<int32_t>(b), b_size, min_match, autojunk, insertions,
                             at<uint8_t>(a_changed), at<uint8_t>(b_changed));
  });
#if MMFAST_HAVE_CUDA
  mmfast::bind_cuda(m);
#endif
  m.def("cpu_image_resize", [](Address in, int64_t height, int64_t width, int64_t to_height, int64_t to_width, int filter,
                               bool vertical_first, int64_t top, int64_t left, int64_t out_height,
                               int64_t out_width, Address out) {
    py::gil_scoped_release release;
    mmfast::cpu_image_resize(at<uint8_t>(in), height, width, to_height, to_width, filter, vertical_first, top, left,
                             out_height, out_width, at<uint8_t>(out));
  });
  m.def("cpu_image_planes", [](Address in, int64_t stride, int64_t height, int64_t width, Address table, Address out) {
    py::gil_scoped_release release;
    mmfast::cpu_image_planes(at<uint8_t>(in), stride, height, width, at<float>(table), at<float>(out));
  });
  m.def("cpu_image_patches", [](Address in, int64_t height, int64_t width, Address table, int64_t patch, int64_t merge,
                                int64_t frames, Address out) {
    py::gil_scoped_release release;
    mmfast::cpu_image_patches(at<uint8_t>(in), height, width, at<float>(table), patch, merge, frames, at<float>(out));
  });
  m.def("cpu_segment_sum", [](Address values, Address copies, Address offsets, Address out, int64_t segments,
                              int64_t width, int dtype) {
    py::gil_scoped_release release;
    mmfast::cpu_segment_sum(at<void>(values), at<int64_t>(copies), at<int64_t>(offsets), at<void>(out), segments, width,
                            dtype);
  });
  m.def("cpu_splice", [](Address tokens, Address features, Address table, Address images, Address out, int64_t rows,
                         int64_t row_bytes, int64_t vocabulary, int64_t feature_rows) {
    py::gil_scoped_release release;
    mmfast::cpu_splice(at<int64_t>(tokens), at<int64_t>(features), at<void>(table), at<void>(images), at<void>(out), rows,
                       row_bytes, vocabulary, feature_rows);
  });
}
