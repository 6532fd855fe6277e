// Picks the instruction set of tree attention at run time.
#include <stdexcept>

#include "cpu/isa.h"
#include "ops.h"

namespace mmfast {

#if MMFAST_HAS_X86_ISAS
MMFAST_DECLARE_ISA(bool tree_forward(const TreeAttention& attention, float* out, float* lse))
MMFAST_DECLARE_ISA(bool tree_backward(const TreeAttention& attention, const TreeGradient& gradient))
#define CALL(call) (best_isa() == Isa::avx512 ? avx512::call : best_isa() == Isa::avx2 && avx2::call)
#else
#define CALL(call) false
#endif

static void check(bool done) {
  if (!done) throw std::runtime_error("tree_attention: out of memory, or a CPU without AVX2");
}
void cpu_tree_forward(const TreeAttention& attention, float* out, float* lse) {
  check(CALL(tree_forward(attention, out, lse)));
}
void cpu_tree_backward(const TreeAttention& attention, const TreeGradient& gradient) {
  check(CALL(tree_backward(attention, gradient)));
}

}  // namespace mmfast
