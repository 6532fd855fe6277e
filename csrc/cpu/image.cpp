// Image preprocessing on one thread, for data workers: Pillow's resize to the bit, then bytes to floats by table.
//
// Pillow resizes an 8-bit image in two passes, horizontal then vertical, each rounded to 8 bits; the filter's weights are
// made in fp64, normalised, and rounded to 22 fractional bits. No OpenMP: this runs in forked workers, and each has a core.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu/isa.h"
#include "ops.h"

namespace mmfast {

MMFAST_DECLARE_ISA(void image_rows(const uint8_t* in, int64_t stride, int64_t height, const int32_t* bounds,
                                   const int16_t* low, const int16_t* high, int64_t taps, int64_t begin, int64_t end,
                                   uint8_t* out))
MMFAST_DECLARE_ISA(void image_columns(const uint8_t* in, int64_t stride, const int16_t* low, const int16_t* high,
                                      int64_t count, int64_t width, uint8_t* out))
MMFAST_DECLARE_ISA(void image_lookup(const uint8_t* in, int64_t pixels, const float* table, int64_t plane, float* out))

namespace {

struct Filter {
  double (*value)(double);
  double support;
};

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {  // Keys' kernel with a = -0.5
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= 3.14159265358979323846;
  return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

Filter filter_of(int code) {  // Pillow's numbers
  if (code == 1) return {lanczos, 3.0};
  if (code == 2) return {bilinear, 1.0};
  if (code == 3) return {bicubic, 2.0};
  throw std::invalid_argument("image resize: only lanczos (1), bilinear (2) and bicubic (3) are implemented");
}

// The weights of every output position along one axis, split as image.isa.cpp reads them.
struct Axis {
  int64_t taps;
  std::vector<int32_t> bounds;  // first input, count of inputs
  std::vector<int16_t> low, high;

  Axis(int64_t in, int64_t out, const Filter& filter) {
    const double scale = double(in) / double(out), stretch = std::max(scale, 1.0);
    const double support = filter.support * stretch, inverse = 1.0 / stretch;
    taps = (int64_t(std::ceil(support)) * 2 + 1 + 3) / 4 * 4;
    if (taps > 4096) throw std::invalid_argument("image resize: an edge would shrink more than a thousandfold");
    bounds.resize(2 * out);
    low.assign(out * taps, 0);
    high.assign(out * taps, 0);
    std::vector<double> row(taps);
    for (int64_t x = 0; x < out; ++x) {
      const double center = (double(x) + 0.5) * scale;
      const int first = std::max(int(center - support + 0.5), 0);
      const int count = std::min(int(center + support + 0.5), int(in)) - first;
      double total = 0.0;
      for (int k = 0; k < count; ++k) {
        row[k] = filter.value((k + first - center + 0.5) * inverse);
        total += row[k];
      }
      for (int k = 0; k < count; ++k) {
        if (total != 0.0) row[k] /= total;
        const int32_t weight = int32_t((row[k] < 0 ? -0.5 : 0.5) + row[k] * double(1 << 22));
        low[x * taps + k] = int16_t(weight & 2047);
        high[x * taps + k] = int16_t(weight >> 11);
      }
      bounds[2 * x] = first;
      bounds[2 * x + 1] = count;
    }
  }
};

constexpr int64_t kOverread = 32;

// Memory of this thread, kept between images: fresh pages cost more than the passes that write them.
enum Slot { kWide, kTall, kPadded, kSlots };
uint8_t* scratch(Slot slot, int64_t bytes) {
  static thread_local std::vector<uint8_t> buffers[kSlots];
  if (int64_t(buffers[slot].size()) < bytes) buffers[slot].resize(bytes);
  return buffers[slot].data();
}

// Rows [first, last) and columns [begin, end) of the horizontal pass.
const uint8_t* horizontal(const uint8_t* in, int64_t width, int64_t out_width, const Filter& filter,
                                int64_t first, int64_t last, int64_t begin, int64_t end) {
  const int64_t stride = 3 * width, rows = last - first, out_stride = 3 * (end - begin);
  uint8_t* out = scratch(kWide, rows * out_stride);
  if (width == out_width) {
    for (int64_t y = 0; y < rows; ++y)
      std::memcpy(out + y * out_stride, in + (first + y) * stride + 3 * begin, out_stride);
    return out;
  }
  const Axis axis(width, out_width, filter);
  auto pass = [&](const uint8_t* from, int64_t height, uint8_t* to) {
    MMFAST_OF_ISA(image_rows)(
        from, stride, height, axis.bounds.data(), axis.low.data(), axis.high.data(), axis.taps, begin, end, to);
  };
  // The loops read up to a few bytes beyond a row: the last rows are copied where those exist.
  const int64_t tail = std::min(rows, kOverread / stride + 1), body = rows - tail;
  pass(in + first * stride, body, out);
  uint8_t* padded = scratch(kPadded, tail * stride + kOverread);
  std::memcpy(padded, in + (first + body) * stride, tail * stride);
  pass(padded, tail, out + body * out_stride);
  return out;
}

}  // namespace

void cpu_image_resize(const uint8_t* in, int64_t height, int64_t width, int64_t to_height, int64_t to_width, int filter,
                      bool vertical_first, int64_t top, int64_t left, int64_t out_height, int64_t out_width,
                      uint8_t* out) {
  if (std::min({height, width, to_height, to_width, out_height, out_width}) < 1)
    throw std::invalid_argument("image resize: every size must be positive");
  const Filter chosen = filter_of(filter);
  // The part of the window that lies on the resized image; the rest stays zero.
  const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + out_height, to_height);
  const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + out_width, to_width);
  if (y1 - y0 < out_height || x1 - x0 < out_width) std::memset(out, 0, out_height * out_width * 3);
  if (y0 >= y1 || x0 >= x1) return;
  const int64_t bytes = 3 * (x1 - x0);
  auto row_of = [&](int64_t y) { return out + ((y - top) * out_width + (x0 - left)) * 3; };
  auto finish = [&](const uint8_t* rows) {
    for (int64_t y = y0; y < y1; ++y) std::memcpy(row_of(y), rows + (y - y0) * bytes, bytes);
  };
  if (height == to_height) return finish(horizontal(in, width, to_width, chosen, y0, y1, x0, x1));
  const Axis axis(height, to_height, chosen);
  auto vertical = [&](const uint8_t* from, int64_t stride, int64_t y, uint8_t* to) {
    MMFAST_OF_ISA(image_columns)(from, stride, axis.low.data() + y * axis.taps, axis.high.data() + y * axis.taps,
                                 axis.bounds[2 * y + 1], stride, to);
  };
  if (vertical_first && width != to_width) {
    const int64_t stride = 3 * width;
    uint8_t* tall = scratch(kTall, (y1 - y0) * stride);
    for (int64_t y = y0; y < y1; ++y)
      vertical(in + axis.bounds[2 * y] * stride, stride, y, tall + (y - y0) * stride);
    return finish(horizontal(tall, width, to_width, chosen, 0, y1 - y0, x0, x1));
  }
  const int64_t first = axis.bounds[2 * y0];
  const int64_t last = axis.bounds[2 * (y1 - 1)] + axis.bounds[2 * (y1 - 1) + 1];
  const uint8_t* wide = horizontal(in, width, to_width, chosen, first, last, x0, x1);
  for (int64_t y = y0; y < y1; ++y)
    vertical(wide + (axis.bounds[2 * y] - first) * bytes, bytes, y, row_of(y));
}

void cpu_image_planes(const uint8_t* in, int64_t stride, int64_t height, int64_t width, const float* table, float* out) {
  for (int64_t y = 0; y < height; ++y)
    MMFAST_OF_ISA(image_lookup)(in + y * stride, width, table, height * width, out + y * width);
}

void cpu_image_patches(const uint8_t* in, int64_t height, int64_t width, const float* table, int64_t patch,
                       int64_t merge, int64_t frames, float* out) {
  const int64_t rows = height / patch, columns = width / patch, area = patch * patch, size = 3 * frames * area;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x) {
      // The patches of a merged square stand side by side.
      const int64_t square = (y / merge) * (columns / merge) + x / merge;
      float* to = out + ((square * merge + y % merge) * merge + x % merge) * size;
      for (int64_t line = 0; line < patch; ++line)
        MMFAST_OF_ISA(image_lookup)(in + ((y * patch + line) * width + x * patch) * 3, patch, table, frames * area,
                                    to + line * patch);
      for (int c = 0; c < 3; ++c)
        for (int64_t frame = 1; frame < frames; ++frame)
          std::memcpy(to + (c * frames + frame) * area, to + c * frames * area, area * sizeof(float));
    }
}

}  // namespace mmfast
