// Picks the instruction set of tree attention at run time.
#include <stdexcept>

#include "cpu/isa.h"
#include "ops.h"

namespace mmfast {

#if MMFAST_HAS_X86_ISAS
MMFAST_DECLARE_ISA(bool tree_forward(const TreeAttention& attention, float* out, float* lse))
MMFAST_DECLARE_ISA(bool tree_backward(const TreeAttention& attention, const TreeGradient& gradient))
#endif

void cpu_tree_forward(const TreeAttention& attention, float* out, float* lse) {
  bool done = false;
#if MMFAST_HAS_X86_ISAS
  if (best_isa() == Isa::avx512) done = avx512::tree_forward(attention, out, lse);
  if (best_isa() == Isa::avx2) done = avx2::tree_forward(attention, out, lse);
#endif
  if (!done) throw std::runtime_error("tree_attention: out of memory, or a CPU without AVX2");
}

void cpu_tree_backward(const TreeAttention& attention, const TreeGradient& gradient) {
  bool done = false;
#if MMFAST_HAS_X86_ISAS
  if (best_isa() == Isa::avx512) done = avx512::tree_backward(attention, gradient);
  if (best_isa() == Isa::avx2) done = avx2::tree_backward(attention, gradient);
#endif
  if (!done) throw std::runtime_error("tree_attention: out of memory, or a CPU without AVX2");
}

}  // namespace mmfast
