// Run-time choice between the copies of the *.isa.cpp files.
//
// A file x.isa.cpp is compiled once an instruction set, with its contents in `namespace mmfast::MMFAST_ISA`.
// A plain file declares the copies with MMFAST_DECLARE_ISA and calls one with MMFAST_CALL_ISA:
//     MMFAST_DECLARE_ISA(void fold_f32(float* x, int64_t n))
//     MMFAST_CALL_ISA(fold_f32(x, n))
#pragma once

namespace mmfast {

enum class Isa { baseline = 0, avx2 = 2, avx512 = 3 };
Isa best_isa();

#if MMFAST_HAS_X86_ISAS
#define MMFAST_DECLARE_ISA(signature) \
  namespace baseline { signature; }   \
  namespace avx2 { signature; }       \
  namespace avx512 { signature; }
#define MMFAST_CALL_ISA(call)                                  \
  (best_isa() == Isa::avx512 ? avx512::call                    \
   : best_isa() == Isa::avx2 ? avx2::call                      \
                             : baseline::call)
#else
#define MMFAST_DECLARE_ISA(signature) namespace baseline { signature; }
#define MMFAST_CALL_ISA(call) baseline::call
#endif

}  // namespace mmfast
