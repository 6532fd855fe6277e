// Prefix forest of many token sequences. Letters: N branches, nodes <= 2N, written in depth-first order.
#include <algorithm>
#include <numeric>
#include <vector>

#include "ops.h"

namespace mmfast {
namespace {

struct Range {
  int32_t low, high;  // sorted branches [low, high) share everything above `depth`
  int32_t parent;
  int64_t depth;
};

}  // namespace

int64_t prefix_forest(const int32_t* symbols, const int64_t* starts, const int64_t* ends, int64_t branches, bool share,
                      int32_t* parent, int64_t* node_start, int64_t* node_end, int32_t* leaf) {
  auto length = [&](int32_t b) { return ends[b] - starts[b]; };
  auto common = [&](int32_t a, int32_t b) {
    const int32_t *x = symbols + starts[a], *y = symbols + starts[b];
    const int64_t n = std::min(length(a), length(b));
    return int64_t(std::mismatch(x, x + n, y).first - x);
  };
  std::vector<int32_t> order(branches);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int64_t n = common(a, b);
    if (n < length(a) && n < length(b)) return symbols[starts[a] + n] < symbols[starts[b] + n];
    if (length(a) != length(b)) return length(a) < length(b);
    return a < b;
  });
  std::vector<int64_t> shared(branches, 0);  // with the branch sorted just before
  for (int64_t i = 1; i < branches; ++i) {
    shared[i] = common(order[i - 1], order[i]);
    const bool equal = shared[i] == length(order[i]) && shared[i] == length(order[i - 1]);
    if (!share && !equal) shared[i] = 0;
  }

  std::vector<Range> stack;
  // Pushes the parts of [low, high) that differ just below `depth`, last part first, so that they pop in order.
  auto push_children = [&](int32_t low, int32_t high, int32_t above, int64_t depth) {
    int32_t end = high;
    for (int32_t i = high - 1; i >= low; --i) {
      if (i == low || shared[i] <= depth) {
        stack.push_back({i, end, above, depth});
        end = i;
      }
    }
  };
  push_children(0, int32_t(branches), -1, 0);
  int32_t nodes = 0;
  while (!stack.empty()) {
    Range r = stack.back();
    stack.pop_back();
    int64_t bottom = length(order[r.low]);
    for (int32_t i = r.low + 1; i < r.high; ++i) bottom = std::min(bottom, shared[i]);
    const int32_t node = nodes++;
    parent[node] = r.parent;
    node_start[node] = starts[order[r.low]] + r.depth;
    node_end[node] = starts[order[r.low]] + bottom;
    int32_t i = r.low;
    for (; i < r.high && length(order[i]) == bottom; ++i) leaf[order[i]] = node;  // they sort first
    push_children(i, r.high, node, bottom);
  }
  return nodes;
}

}  // namespace mmfast
