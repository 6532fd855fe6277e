// Picks the instruction set of the head's folds at run time.
#include "cpu/isa.h"
#include "ops.h"

namespace mmfast {

MMFAST_DECLARE_ISA(FoldForward fold_forward)
MMFAST_DECLARE_ISA(FoldGradient fold_gradient)
MMFAST_DECLARE_ISA(FoldFinish fold_finish)

void cpu_fold_forward(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total, const FoldResults& to,
                      uintptr_t threads) {
  MMFAST_CALL_ISA(fold_forward(tile, stats, entropy, squares, total, to, threads));
}
void cpu_fold_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d,
                       uintptr_t threads) {
  MMFAST_CALL_ISA(fold_gradient(tile, lse, a, b, d, threads));
}
void cpu_fold_finish(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows,
                     int64_t width, int64_t tile_width, int dtype, uintptr_t threads) {
  MMFAST_CALL_ISA(fold_finish(kept, scale, entry, targets, rows, width, tile_width, dtype, threads));
}

}  // namespace mmfast
