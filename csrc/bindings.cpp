// The native module mmfast._C.
#include "bindings.h"

#include "cpu/isa.h"

namespace mmfast {

MMFAST_DECLARE_ISA(FoldForward fold_forward)
MMFAST_DECLARE_ISA(FoldGradient fold_gradient)
MMFAST_DECLARE_ISA(FoldFinish fold_finish)
MMFAST_DECLARE_ISA(bool tree_forward(const TreeAttention& attention, float* out, float* lse))
MMFAST_DECLARE_ISA(bool tree_backward(const TreeAttention& attention, const TreeGradient& gradient))

PYBIND11_MODULE(_C, m) {
  m.doc() = "mmfast native ops: raw pointers in and out";
  m.attr("have_cuda") = bool(MMFAST_HAVE_CUDA);
  bind(m, "cpu_isa", cpu_isa);
  bind(m, "cpu_fold_forward", MMFAST_OF_ISA(fold_forward));
  bind(m, "cpu_fold_gradient", MMFAST_OF_ISA(fold_gradient));
  bind(m, "cpu_fold_finish", MMFAST_OF_ISA(fold_finish));
  bind(m, "cpu_has_gemm_bf16", cpu_has_gemm_bf16);
  bind(m, "cpu_gemm_bf16", cpu_gemm_bf16);
  bind(m, "cpu_tree_forward", MMFAST_OF_ISA(tree_forward));
  bind(m, "cpu_tree_backward", MMFAST_OF_ISA(tree_backward));
  bind(m, "prefix_forest", prefix_forest);
  bind(m, "pack_step", pack_step);
  bind(m, "cpu_preference_f32", cpu_preference<float>);
  bind(m, "cpu_preference_f64", cpu_preference<double>);
  bind(m, "changed_segments", changed_segments);
  bind(m, "cpu_image_resize", cpu_image_resize);
  bind(m, "cpu_image_planes", cpu_image_planes);
  bind(m, "cpu_image_patches", cpu_image_patches);
  bind(m, "cpu_segment_sum", cpu_segment_sum);
  bind(m, "cpu_splice", cpu_splice);
#if MMFAST_HAVE_CUDA
  bind_cuda(m);
#endif
}

}  // namespace mmfast
