// The native module mmfast._C.
#include "bindings.h"

namespace py = pybind11;
using namespace mmfast;

PYBIND11_MODULE(_C, m) {
  m.doc() = "mmfast native ops: raw pointers in and out";
  m.attr("have_cuda") = bool(MMFAST_HAVE_CUDA);
  m.def("cpu_isa", &cpu_isa);
  bind_logit_tile(m);
  bind_folds(m, "cpu", cpu_fold_forward, cpu_fold_gradient, cpu_fold_finish);
  m.def("cpu_has_gemm_bf16", &cpu_has_gemm_bf16);
  m.def("cpu_gemm_bf16", [](Address a, int64_t a_row, int64_t a_col, Address b, int64_t b_row, int64_t b_col, Address c,
                            int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, int threads) {
    py::gil_scoped_release release;
    cpu_gemm_bf16({at<const uint16_t>(a), at<const uint16_t>(b), at<float>(c), rows, columns, depth, a_row, a_col,
                   b_row, b_col, c_stride, accumulate, threads});
  });
  py::class_<TreeAttention>(m, "TreeAttention", py::module_local())
      .def(py::init([](Address q_offsets, Address k_offsets, Address k_index, int64_t runs, int64_t heads,
                       int64_t kv_heads, int64_t width, float scale, int64_t window, int threads, Address q,
                       int64_t q_token, int64_t q_head, Address k, int64_t k_token, int64_t k_head, Address v,
                       int64_t v_token, int64_t v_head) {
        return TreeAttention{at<int64_t>(q_offsets), at<int64_t>(k_offsets), at<int64_t>(k_index), runs, heads,
                             kv_heads, width, scale, window, threads, {at<float>(q), q_token, q_head},
                             {at<float>(k), k_token, k_head}, {at<float>(v), v_token, v_head}};
      }));
  m.def("cpu_tree_forward", [](const TreeAttention& attention, Address out, Address lse) {
    py::gil_scoped_release release;
    cpu_tree_forward(attention, at<float>(out), at<float>(lse));
  });
  m.def("cpu_tree_backward", [](const TreeAttention& attention, Address grad, int64_t token, int64_t head, Address out,
                                Address lse, Address d_q, Address d_k, Address d_v) {
    py::gil_scoped_release release;
    cpu_tree_backward(attention, {{at<float>(grad), token, head}, at<float>(out), at<float>(lse), at<float>(d_q),
                                  at<float>(d_k), at<float>(d_v)});
  });
  m.def("prefix_forest", [](Address symbols, Address starts, Address ends, int64_t branches, bool share,
                            Address parent, Address node_start, Address node_end, Address leaf) {
    return prefix_forest(at<const int32_t>(symbols), at<const int64_t>(starts), at<const int64_t>(ends), branches,
                         share, at<int32_t>(parent), at<int64_t>(node_start), at<int64_t>(node_end),
                         at<int32_t>(leaf));
  });
  m.def("pack_step", [](Address parent, Address tokens, Address cost, int64_t nodes, Address leaves, int64_t pairs,
                        int64_t world, int64_t budget, Address pack_of, Address pack_tokens, Address pack_cost) {
    return pack_step(at<const int32_t>(parent), at<const int64_t>(tokens), at<const int64_t>(cost), nodes,
                     at<const int32_t>(leaves), pairs, world, budget, at<int32_t>(pack_of),
                     at<int64_t>(pack_tokens), at<int64_t>(pack_cost));
  });

  bind_preference(m, "cpu", cpu_preference<float>, cpu_preference<double>);
  m.def("changed_segments", [](Address a, int64_t a_size, Address b, int64_t b_size, int64_t min_match, bool autojunk,
                               int insertions, Address a_changed, Address b_changed) {
    py::gil_scoped_release release;
    changed_segments(at<int32_t>(a), a_size, at<int32_t>(b), b_size, min_match, autojunk, insertions,
                     at<uint8_t>(a_changed), at<uint8_t>(b_changed));
  });
#if MMFAST_HAVE_CUDA
  bind_cuda(m);
#endif
  m.def("cpu_image_resize", [](Address in, int64_t height, int64_t width, int64_t to_height, int64_t to_width, int filter,
                               bool vertical_first, int64_t top, int64_t left, int64_t out_height,
                               int64_t out_width, Address out) {
    py::gil_scoped_release release;
    cpu_image_resize(at<uint8_t>(in), height, width, to_height, to_width, filter, vertical_first, top, left,
                     out_height, out_width, at<uint8_t>(out));
  });
  m.def("cpu_image_planes", [](Address in, int64_t stride, int64_t height, int64_t width, Address table, Address out) {
    py::gil_scoped_release release;
    cpu_image_planes(at<uint8_t>(in), stride, height, width, at<float>(table), at<float>(out));
  });
  m.def("cpu_image_patches", [](Address in, int64_t height, int64_t width, Address table, int64_t patch, int64_t merge,
                                int64_t frames, Address out) {
    py::gil_scoped_release release;
    cpu_image_patches(at<uint8_t>(in), height, width, at<float>(table), patch, merge, frames, at<float>(out));
  });
  m.def("cpu_segment_sum", [](Address values, Address copies, Address offsets, Address out, int64_t segments,
                              int64_t width, int dtype) {
    py::gil_scoped_release release;
    cpu_segment_sum(at<void>(values), at<int64_t>(copies), at<int64_t>(offsets), at<void>(out), segments, width,
                    dtype);
  });
  m.def("cpu_splice", [](Address tokens, Address features, Address table, Address images, Address out, int64_t rows,
                         int64_t row_bytes, int64_t vocabulary, int64_t feature_rows) {
    py::gil_scoped_release release;
    cpu_splice(at<int64_t>(tokens), at<int64_t>(features), at<void>(table), at<void>(images), at<void>(out), rows,
               row_bytes, vocabulary, feature_rows);
  });
}
