// Picks the instruction set of the head's folds at run time.
#include "cpu/isa.h"
#include "ops.h"

namespace mmfast {

MMFAST_DECLARE_ISA(void fold_forward(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total, void* out_z,
                                     int64_t out_z_stride))
MMFAST_DECLARE_ISA(void fold_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d))
MMFAST_DECLARE_ISA(void rescale(void* acc, const void* factor, int64_t rows, int64_t width, int64_t stride, int dtype,
                                int threads))
MMFAST_DECLARE_ISA(void finish(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows,
                               int64_t width, int64_t tile_width, int dtype, int threads))

void cpu_fold_forward(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total, void* out_z,
                      int64_t out_z_stride) {
  MMFAST_CALL_ISA(fold_forward(tile, stats, entropy, squares, total, out_z, out_z_stride));
}
void cpu_fold_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d) {
  MMFAST_CALL_ISA(fold_gradient(tile, lse, a, b, d));
}
void cpu_rescale(void* acc, const void* factor, int64_t rows, int64_t width, int64_t stride, int dtype, int threads) {
  MMFAST_CALL_ISA(rescale(acc, factor, rows, width, stride, dtype, threads));
}
void cpu_finish(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows, int64_t width,
                int64_t tile_width, int dtype, int threads) {
  MMFAST_CALL_ISA(finish(kept, scale, entry, targets, rows, width, tile_width, dtype, threads));
}

}  // namespace mmfast
