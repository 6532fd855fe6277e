// The head's folds on CPU: one thread a row, each row of a tile read from memory once (its later passes hit the cache).
// mmfast/ops/head/folds.py says what every quantity means and does the same in torch.
#include "math.h"
#include "ops.h"

namespace mmfast {
namespace MMFAST_ISA {

template <typename T>
MMFAST_HD void store(T* to, T value) { *to = value; }
MMFAST_HD void store(uint16_t* to, float value) { *to = to_bf16(value); }

template <typename F>
static void each_row(int64_t rows, uintptr_t threads, F row) {
#pragma omp parallel for num_threads(int(threads)) if (threads > 1) schedule(static)
  for (int64_t t = 0; t < rows; ++t) row(t);
}

// Bias, softcap and temperature, in place; nothing to do is the common case.
template <typename T>
static void map_row(const LogitTile& tile, const LogitMap<T>& map, T* z) {
  const int64_t n = tile.width;
  const T* bias = static_cast<const T*>(tile.bias);
  if (bias) {
#pragma omp simd
    for (int64_t v = 0; v < n; ++v) z[v] += bias[v];
  }
  if (map.softcap > 0) {
#pragma omp simd
    for (int64_t v = 0; v < n; ++v) z[v] = map.softcap * tanh_of(z[v] * map.inv_softcap) * map.inv_temperature;
  } else if (map.inv_temperature != 1) {
#pragma omp simd
    for (int64_t v = 0; v < n; ++v) z[v] *= map.inv_temperature;
  }
}

// The common fold: sum of e^(z - base), and the exponentials themselves where `out` is not null.
template <typename T, typename Out>
static T exponentials(const T* z, int64_t n, T base, Out* out) {
  T sum = 0;
  if (!out) {
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < n; ++v) sum += exp_or_zero(z[v] - base);
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < n; ++v) {
      const T e = exp_or_zero(z[v] - base);
      sum += e;
      store(out + v, e);
    }
  }
  return sum;
}

// The fold with every extra. The sums come first, since out may overwrite z and out_z needs the centre.
template <typename T>
static OthersSum<T> all_sums(const T* z, int64_t n, T base) {
  T s = 0, sz = 0, s2 = 0;
#pragma omp simd reduction(+ : s, sz, s2)
  for (int64_t v = 0; v < n; ++v) {
    const T e = exp_or_zero(z[v] - base);
    s += e;
    sz += e > 0 ? e * (z[v] - base) : T(0);
    s2 += e * e;
  }
  return {base, s, sz, s2};
}
template <typename T, typename Out>
static void weighted_exponentials(const T* z, int64_t n, T base, T center, const LogitMap<T>& map, Out* out, Out* out_z) {
  for (int64_t v = 0; v < n; ++v) {
    const T zv = z[v], e = exp_or_zero(zv - base);
    const T weighted = e > 0 ? e * slope_of(map, zv) : e;
    if (out_z) store(out_z + v, e > 0 ? weighted * (zv - center) : e);
    if (out) store(out + v, weighted);
  }
}

template <typename T, typename Out>
static void forward(const LogitTile& tile, T* stats, bool entropy, bool squares, bool total, const FoldResults& to,
                    uintptr_t threads) {
  const LogitMap<T> map = LogitMap<T>::of(tile.softcap, tile.temperature);
  const int64_t rows = tile.rows, n = tile.width;
  const bool plain = !entropy && !squares && !to.out_z && !(map.softcap > 0 && tile.out);
  each_row(rows, threads, [&](int64_t t) {
    T* z = static_cast<T*>(tile.logits) + t * tile.stride;
    auto stat = [&](Stat which) -> T& { return stats[which * rows + t]; };
    map_row(tile, map, z);
    if (tile.first == 0)
      for (int k = 0; k < kStats; ++k) stats[k * rows + t] = k == kMax ? -INFINITY : T(0);
    if (total) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t v = 0; v < n; ++v) sum += z[v];
      stat(kTotal) += sum;
    }
    const int64_t y = tile.targets[t] - tile.first;
    if (y >= 0 && y < n) {
      stat(kTarget) = z[y];
      z[y] = -INFINITY;  // the target stands apart: every sum runs over the others
    }
    T m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t v = 0; v < n; ++v) m = z[v] > m ? z[v] : m;
    OthersSum<T> sum = {stat(kMax), stat(kSum), stat(kSumZ), stat(kSquares)};
    const bool first = !(sum.m > -INFINITY);
    m = m > sum.m ? m : sum.m;
    const T factor = move_maximum(sum, m);
    T* sums = static_cast<T*>(to.sums) + t * to.sums_stride;
    if (to.sums && factor != 1) {
#pragma omp simd
      for (int64_t i = 0; i < to.sums_width; ++i) sums[i] *= factor;
    }
    const T base = finite_or_zero(m);
    Out* out = tile.out ? static_cast<Out*>(tile.out) + t * tile.out_stride : nullptr;
    if (plain) {
      sum.s += exponentials(z, n, base, out);
    } else {
      const OthersSum<T> more = all_sums(z, n, base);
      if (first) stat(kCenter) = base + (more.s > 0 ? more.sz / more.s : T(0));
      if (out || to.out_z)
        weighted_exponentials(z, n, base, stat(kCenter), map, out,
                              to.out_z ? static_cast<Out*>(to.out_z) + t * to.out_z_stride : nullptr);
      sum.s += more.s;
      stat(kSumZ) = sum.sz + more.sz;
      stat(kSquares) = sum.s2 + more.s2;
    }
    stat(kMax) = stat(kBase) = m;
    stat(kSum) = stat(kWritten) = sum.s;
    if (to.base) static_cast<T*>(to.base)[t] = m;
  });
}

// run(T{}, Out{}) for the dtypes of a tile and its output: equal ones, or bf16 beside fp32.
template <typename F>
static void with_types(int dtype, int out_dtype, F run) {
  if (dtype == kF64) run(double(), double());
  else if (out_dtype == kBF16) run(float(), uint16_t());
  else run(float(), float());
}

void fold_forward(const LogitTile& tile, void* stats, bool entropy, bool squares, bool total, const FoldResults& to,
                  uintptr_t threads) {
  with_types(tile.dtype, tile.out_dtype, [&](auto x, auto y) {
    forward<decltype(x), decltype(y)>(tile, static_cast<decltype(x)*>(stats), entropy, squares, total, to, threads);
  });
}

template <typename T, typename Out>
static void gradient(const LogitTile& tile, const T* lse, const T* a, const T* b, const T* d, uintptr_t threads) {
  const LogitMap<T> map = LogitMap<T>::of(tile.softcap, tile.temperature);
  const int64_t n = tile.width;
  each_row(tile.rows, threads, [&](int64_t t) {
    T* z = static_cast<T*>(tile.logits) + t * tile.stride;
    Out* out = static_cast<Out*>(tile.out) + t * tile.out_stride;
    map_row(tile, map, z);
    const T base = lse[t], at = a[t], bt = b ? b[t] : T(0);
    if (map.softcap > 0 || b) {
#pragma omp simd
      for (int64_t v = 0; v < n; ++v) {
        const T logp = z[v] - base, p = exp_or_zero(logp);
        store(out + v, p > 0 ? p * (at + bt * logp) * slope_of(map, z[v]) : p);
      }
    } else {
#pragma omp simd
      for (int64_t v = 0; v < n; ++v) store(out + v, exp_or_zero(z[v] - base) * at);
    }
    const int64_t y = tile.targets[t] - tile.first;
    if (y >= 0 && y < n) store(out + y, d[t]);
  });
}

void fold_gradient(const LogitTile& tile, const void* lse, const void* a, const void* b, const void* d,
                   uintptr_t threads) {
  with_types(tile.dtype, tile.out_dtype, [&](auto x, auto y) {
    using T = decltype(x);
    gradient<T, decltype(y)>(tile, static_cast<const T*>(lse), static_cast<const T*>(a), static_cast<const T*>(b),
                             static_cast<const T*>(d), threads);
  });
}

MMFAST_HD float load(const float* from) { return *from; }
MMFAST_HD double load(const double* from) { return *from; }
MMFAST_HD float load(const uint16_t* from) { return from_bf16(*from); }

template <typename T, typename Kept>
static void finish_rows(Kept* kept, const T* scale, const T* entry, const int64_t* targets, int64_t rows, int64_t width,
                        int64_t tile_width, uintptr_t threads) {
  const int64_t tiles = (width + tile_width - 1) / tile_width;
  each_row(rows, threads, [&](int64_t t) {
    Kept* row = kept + t * width;
    for (int64_t k = 0; k < tiles; ++k) {
      const T f = scale[t * tiles + k];
      if (f == 1) continue;
      const int64_t stop = (k + 1) * tile_width < width ? (k + 1) * tile_width : width;
#pragma omp simd
      for (int64_t v = k * tile_width; v < stop; ++v) store(row + v, load(row + v) * f);
    }
    store(row + targets[t], entry[t]);
  });
}

void fold_finish(void* kept, const void* scale, const void* entry, const int64_t* targets, int64_t rows, int64_t width,
                 int64_t tile_width, int dtype, uintptr_t threads) {
  with_types(dtype, dtype, [&](auto x, auto y) {
    using T = decltype(x);
    finish_rows(static_cast<decltype(y)*>(kept), static_cast<const T*>(scale), static_cast<const T*>(entry), targets,
                rows, width, tile_width, threads);
  });
}

}  // namespace MMFAST_ISA
}  // namespace mmfast
