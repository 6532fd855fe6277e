// Run-time choice between the copies of the *.isa.cpp files.
//
// A file x.isa.cpp is compiled once an instruction set, with its contents in `namespace mmfast::MMFAST_ISA`.
// A plain file declares the copies with MMFAST_DECLARE_ISA and takes one with MMFAST_OF_ISA:
//     MMFAST_DECLARE_ISA(void fold_f32(float* x, int64_t n))
//     MMFAST_OF_ISA(fold_f32)(x, n)
#pragma once

namespace mmfast {

enum class Isa { baseline = 0, avx2 = 2, avx512 = 3 };
Isa best_isa();

#if MMFAST_HAS_X86_ISAS
#define MMFAST_DECLARE_ISA(signature) \
  namespace baseline { signature; }   \
  namespace avx2 { signature; }       \
  namespace avx512 { signature; }
#define MMFAST_OF_ISA(name)                                    \
  (best_isa() == Isa::avx512 ? avx512::name                    \
   : best_isa() == Isa::avx2 ? avx2::name                      \
                             : baseline::name)
#else
#define MMFAST_DECLARE_ISA(signature) namespace baseline { signature; }
#define MMFAST_OF_ISA(name) baseline::name
#endif

}  // namespace mmfast
