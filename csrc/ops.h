// Every native op, declared once. Raw pointers in and out; no torch, no Python.
// Shapes stand behind each pointer; docs/ops/README.md says which files an op has.
#pragma once
#include <cstdint>

namespace mmfast {

// dtype codes, as in mmfast/ops/rows.py
enum DType : int { kF32 = 0, kBF16 = 1, kF16 = 2, kF64 = 3 };

// Instruction set chosen at run time, best first: "avx512", "avx2", "baseline"; MMFAST_CPU caps it.
const char* cpu_isa();

// One tile of raw logits [rows, width] and where its results go (docs/ops/linear_logprob.md; mmfast/ops/head/folds.py says
// what each fold does). Sums are fp32, for fp64 logits fp64: the accumulator's dtype. On CPU the tile is fp32 or fp64 and is
// overwritten; on a GPU it is fp32, bf16 or fp16 and is written only where it is an output. out may be the tile itself.
struct LogitTile {
  void* logits;
  int64_t rows, width, stride;
  int dtype;
  const void* bias;        // [width] of the accumulator's dtype, or null
  const int64_t* targets;  // [rows]
  int64_t first;           // the tile's first column in the vocabulary
  double softcap;          // 0: none
  double temperature;
  void* out;  // [rows, out_stride], or null: the tile's dtype, or a 16-bit one beside an fp32 tile (on CPU bf16)
  int64_t out_stride;
  int out_dtype;
};
// Rows of the running statistics [kStats, rows], as in folds.py.
enum Stat { kMax, kSum, kTarget, kSumZ, kSquares, kTotal, kCenter, kBase, kWritten, kStats };
// What a forward fold touches beside the statistics and the tile's out.
struct FoldResults {
  void* out_z;  // like out, with its own stride, or null
  int64_t out_z_stride;
  void* base;  // [rows]: the base of each row's exponentials in this tile, or null
  void* sums;  // [rows, sums_stride] of the accumulator's dtype, multiplied where a row's base moves, or null
  int64_t sums_width, sums_stride;
};
// The folds have one signature on CPU (fold_forward ... in logprob.isa.cpp) and GPU (cuda_fold_forward ...). `queue` is the
// number of threads there, the stream (cudaStream_t) here.
using FoldForward = void(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total,
                         const FoldResults& to, uintptr_t queue);
// out = slope e^(z - lse) (a + b (z - lse)), at the target d. lse, a, b (or null), d: [rows] of the accumulator's dtype.
using FoldGradient = void(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d,
                          uintptr_t queue);
// kept[t, v] *= scale[v / tile_width, t] (ones skipped), then kept[t, targets[t]] = entry[t]. scale [tiles, rows], entry:
// of the accumulator's dtype.
using FoldFinish = void(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows,
                        int64_t width, int64_t stride, int64_t tile_width, int dtype, uintptr_t queue);

// C[m,n] = A[m,k] B[k,n] (+ C), A and B bf16 (A dense along k), C fp32 with row stride c_stride; fp32 accumulation. None of
// the sizes is 0. For CPUs with AVX512-BF16, as cpu_has_gemm_bf16 says; throws std::invalid_argument elsewhere.
struct Bf16Gemm {
  const uint16_t *a, *b;
  float* c;
  int64_t m, n, k, a_row, b_row, b_col, c_stride;
  bool accumulate;
  int threads;
};
void cpu_gemm_bf16(const Bf16Gemm& gemm);
bool cpu_has_gemm_bf16();

// Prefix forest of branches symbols[starts[b], ends[b]), none empty; an image is one negative symbol. Writes nodes in
// depth-first order (room for 2 * branches) and the node at which each branch ends; returns the number of nodes.
// share = false: only wholly equal branches become one.
int64_t prefix_forest(const int32_t* symbols, const int64_t* starts, const int64_t* ends, int64_t branches, bool share,
                      int32_t* parent, int64_t* node_start, int64_t* node_end, int32_t* leaf);
// One step's pairs -> packs. Nodes in depth-first order with tokens and cost; leaves: [pairs, 2], the second -1 for SFT.
// pack_of[p] = micro-batch * world + rank; tokens and cost of each pack (room for every pair in its own, rounded up to
// whole micro-batches). Returns the number of micro-batches; -1 if a pair alone exceeds the budget.
int64_t pack_step(const int32_t* parent, const int64_t* tokens, const int64_t* cost, int64_t nodes,
                  const int32_t* leaves, int64_t pairs, int64_t world, int64_t budget, int32_t* pack_of,
                  int64_t* pack_tokens, int64_t* pack_cost);

// Loss, metrics[6, P] and d loss / d logps[U] (skipped where null) of preference_loss (csrc/preference.h has the structs),
// of fp32 or fp64. On CPU a bad index throws std::invalid_argument, and `stream` has no meaning.
struct PreferenceSpec;
template <class T>
struct PreferenceTensors;
template <class T>
void cpu_preference(const PreferenceTensors<T>& tensors, const PreferenceSpec& spec, uintptr_t stream);

// Flags of the tokens by which a (rejected) and b (chosen) differ: difflib's matching blocks of at least min_match tokens,
// and what lies between them. insertions: 0 only where both sides have tokens, 1 one-sided too, 2 and beside the gap.
void changed_segments(const int32_t* a, int64_t a_size, const int32_t* b, int64_t b_size, int64_t min_match,
                      bool autojunk, int insertions, uint8_t* a_changed, uint8_t* b_changed);

// Images, RGB bytes [height, width, 3], on the calling thread. filter: Pillow's number (1 lanczos, 2 bilinear, 3 bicubic).
// Resizes to [to_height, to_width] as Pillow does, and writes the window at (top, left) of it; zero where it sticks out.
void cpu_image_resize(const uint8_t* in, int64_t height, int64_t width, int64_t to_height, int64_t to_width, int filter,
                      bool vertical_first, int64_t top, int64_t left, int64_t out_height, int64_t out_width,
                      uint8_t* out);
// out[c, y, x] = table[c, byte]; stride is a row's bytes.
void cpu_image_planes(const uint8_t* in, int64_t stride, int64_t height, int64_t width, const float* table, float* out);
// The same as Qwen's flat patches: [square of merge x merge patches][patch in it][c, frames, patch, patch], frames alike.
void cpu_image_patches(const uint8_t* in, int64_t height, int64_t width, const float* table, int64_t patch,
                       int64_t merge, int64_t frames, float* out);

// Rows by index (docs/ops/splice_embeddings.md).
// out[s] = sum of values[copies[j]] for j in offsets[s]..offsets[s+1], in that order; sums in fp32 (fp64 for fp64).
// values [*, width], out [segments, width]. On CPU `stream` has no meaning.
using SegmentSum = void(const void* values, const int64_t* copies, const int64_t* offsets, void* out, int64_t segments,
                        int64_t width, int dtype, uintptr_t stream);
SegmentSum cpu_segment_sum;
// out[t] = features[t] < 0 ? table[tokens[t]] : images[features[t]]; throws std::invalid_argument on a bad index.
void cpu_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                int64_t rows, int64_t row_bytes, int64_t vocabulary, int64_t feature_rows);

// Tree attention (docs/ops/tree_attention.md), all of it fp32, for CPUs with AVX2 or AVX-512:
//     bool tree_forward(const TreeAttention& attention, float* out, float* lse)
//     bool tree_backward(const TreeAttention& attention, const TreeGradient& gradient)
// out [T, heads, width]; lse [T, heads], to the base 2. Every element of the results is written; false: out of memory.
struct Rows {  // [tokens, heads, width]: a token's and a head's stride in elements, the width is dense
  const float* at;
  int64_t token, head;
};
struct TreeAttention {
  const int64_t *q_offsets, *k_offsets;  // [runs + 1]
  const int64_t* k_index;
  int64_t runs, heads, kv_heads, width;  // heads is a multiple of kv_heads, width of 16
  float scale;
  int64_t window;  // 0: none
  int threads;
  Rows q, k, v;
};
struct TreeGradient {
  Rows grad;
  const float *out, *lse;      // as the forward pass wrote them
  float *d_q, *d_k, *d_v;      // [T, heads, width], and of the gathered keys and values [K, kv_heads, width]
};

}  // namespace mmfast
