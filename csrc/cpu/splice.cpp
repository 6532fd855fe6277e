// Rows by index: the splice of image features into token embeddings, and the ordered segment sum that is its gradient
// (and that of every gather with repeats).
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu/half.h"
#include "ops.h"

namespace mmfast {
namespace {

template <typename T, typename Acc>
T narrow(Acc x) {
  if constexpr (std::is_same_v<T, Acc>) return x;
  else return T::from(x);
}

constexpr int64_t kBlock = 256;          // accumulators of one block of columns stay in the first-level cache
constexpr int64_t kParallelBytes = 1 << 18;  // below this, waking the threads costs more than the copy

template <typename T, typename Acc>
void sum_row(const T* values, const int64_t* copies, int64_t begin, int64_t end, int64_t width, T* out) {
  if (begin == end) {
    std::memset(static_cast<void*>(out), 0, width * sizeof(T));
    return;
  }
  if (end - begin == 1) {
    std::memcpy(static_cast<void*>(out), values + copies[begin] * width, width * sizeof(T));
    return;
  }
  Acc sums[kBlock];
  for (int64_t at = 0; at < width; at += kBlock) {
    const int64_t n = width - at < kBlock ? width - at : kBlock;
    const T* first = values + copies[begin] * width + at;
    for (int64_t i = 0; i < n; ++i) sums[i] = Acc(first[i]);
    for (int64_t j = begin + 1; j < end; ++j) {
      const T* row = values + copies[j] * width + at;
      for (int64_t i = 0; i < n; ++i) sums[i] += Acc(row[i]);
    }
    for (int64_t i = 0; i < n; ++i) out[at + i] = narrow<T>(sums[i]);
  }
}

template <typename T, typename Acc>
void segment_sum(const void* values, const int64_t* copies, const int64_t* offsets, int64_t segments, int64_t width,
                 void* out) {
  const T* in = static_cast<const T*>(values);
  T* to = static_cast<T*>(out);
#pragma omp parallel for schedule(static) if (segments * width * int64_t(sizeof(T)) > kParallelBytes)
  for (int64_t s = 0; s < segments; ++s)
    sum_row<T, Acc>(in, copies, offsets[s], offsets[s + 1], width, to + s * width);
}

}  // namespace

void cpu_segment_sum(const void* values, const int64_t* copies, const int64_t* offsets, void* out, int64_t segments,
                     int64_t width, int dtype, uintptr_t) {
  switch (dtype) {
    case kF64: return segment_sum<double, double>(values, copies, offsets, segments, width, out);
    case kF32: return segment_sum<float, float>(values, copies, offsets, segments, width, out);
    case kBF16: return segment_sum<BFloat16, float>(values, copies, offsets, segments, width, out);
    case kF16: return segment_sum<Float16, float>(values, copies, offsets, segments, width, out);
    default: throw std::invalid_argument("segment_sum: unknown dtype code");
  }
}

void cpu_splice(const int64_t* tokens, const int64_t* features, const void* table, const void* images, void* out,
                int64_t rows, int64_t row_bytes, int64_t vocabulary, int64_t feature_rows) {
  for (int64_t t = 0; t < rows; ++t) {
    if (features[t] < -1 || features[t] >= feature_rows)
      throw std::invalid_argument("splice_embeddings: features[" + std::to_string(t) + "] is " +
                                  std::to_string(features[t]) + ", outside [-1, " + std::to_string(feature_rows) + ")");
    if (features[t] < 0 && (tokens[t] < 0 || tokens[t] >= vocabulary))
      throw std::invalid_argument("splice_embeddings: tokens[" + std::to_string(t) + "] is " +
                                  std::to_string(tokens[t]) + ", outside the table's [0, " +
                                  std::to_string(vocabulary) + ")");
  }
  const char* from_table = static_cast<const char*>(table);
  const char* from_images = static_cast<const char*>(images);
  char* to = static_cast<char*>(out);
#pragma omp parallel for schedule(static) if (rows * row_bytes > kParallelBytes)
  for (int64_t t = 0; t < rows; ++t) {
    const char* from = features[t] < 0 ? from_table + tokens[t] * row_bytes : from_images + features[t] * row_bytes;
    std::memcpy(to + t * row_bytes, from, row_bytes);
  }
}

}  // namespace mmfast
