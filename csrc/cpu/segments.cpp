// The tokens by which two answers differ: Python's difflib.SequenceMatcher, emulated to the bit on int32 ids.
//
// Longest matching block first (ties: earliest in a, then in b), then the same left and right of it. With autojunk an id
// that fills more than 1% + 1 of a b of 200 or more seeds no match, though a found block still grows over it.
// No OpenMP: this runs in forked data workers.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops.h"

namespace mmfast {
namespace {

struct Block {
  int64_t a, b, size;
};

class Matcher {
 public:
  Matcher(const int32_t* a, int64_t a_size, const int32_t* b, int64_t b_size, bool autojunk)
      : a_(a), b_(b), a_size_(a_size), b_size_(b_size), first_(a_size), next_(b_size), cells_(2 * (b_size + 1)) {
    index(autojunk);
  }

  // All matching blocks in order, neighbours merged, shorter ones than min_match dropped.
  std::vector<Block> blocks(int64_t min_match) {
    struct Window {
      int64_t a_low, a_high, b_low, b_high;
    };
    std::vector<Block> found;
    std::vector<Window> waiting{{0, a_size_, 0, b_size_}};
    while (!waiting.empty()) {
      const Window w = waiting.back();
      waiting.pop_back();
      const Block m = longest(w.a_low, w.a_high, w.b_low, w.b_high);
      if (!m.size) continue;
      found.push_back(m);
      if (w.a_low < m.a && w.b_low < m.b) waiting.push_back({w.a_low, m.a, w.b_low, m.b});
      if (m.a + m.size < w.a_high && m.b + m.size < w.b_high)
        waiting.push_back({m.a + m.size, w.a_high, m.b + m.size, w.b_high});
    }
    std::sort(found.begin(), found.end(), [](const Block& x, const Block& y) { return x.a < y.a; });
    std::vector<Block> merged;
    for (const Block& m : found) {
      if (!merged.empty() && merged.back().a + merged.back().size == m.a && merged.back().b + merged.back().size == m.b)
        merged.back().size += m.size;
      else
        merged.push_back(m);
    }
    merged.erase(std::remove_if(merged.begin(), merged.end(), [&](const Block& m) { return m.size < min_match; }),
                 merged.end());
    return merged;
  }

 private:
  // Chains of equal ids in b, ascending: first_[i] for a[i], then next_. -1 ends a chain; popular ids have none.
  void index(bool autojunk) {
    int64_t slots = 16;
    while (slots < 2 * b_size_) slots *= 2;
    struct Slot {
      int32_t id, head, count;
    };
    std::vector<Slot> table(slots, Slot{0, -1, 0});
    auto find = [&](int32_t id) -> Slot& {
      uint64_t at = (uint32_t(id) * 0x9E3779B97F4A7C15ull >> 20) & (slots - 1);
      while (table[at].head >= 0 && table[at].id != id) at = (at + 1) & (slots - 1);
      return table[at];
    };
    for (int64_t j = b_size_ - 1; j >= 0; --j) {
      Slot& slot = find(b_[j]);
      next_[j] = slot.head;
      slot = {b_[j], int32_t(j), slot.count + 1};
    }
    const int64_t limit = autojunk && b_size_ >= 200 ? b_size_ / 100 + 1 : b_size_;
    for (int64_t i = 0; i < a_size_; ++i) {
      const Slot& slot = find(a_[i]);
      first_[i] = slot.count > limit ? -1 : slot.head;
    }
  }

  Block longest(int64_t a_low, int64_t a_high, int64_t b_low, int64_t b_high) {
    Block best{a_low, b_low, 0};
    Cell* previous = cells_.data();
    Cell* current = previous + b_size_ + 1;
    ++stamp_;  // no cell of another window carries this stamp
    for (int64_t i = a_low; i < a_high; ++i) {
      ++stamp_;
      for (int32_t j = first_[i]; j >= 0 && j < b_high; j = next_[j]) {
        if (j < b_low) continue;
        const Cell& before = previous[j];  // the cell of j - 1
        const int32_t size = before.stamp == stamp_ - 1 ? before.size + 1 : 1;
        current[j + 1] = {stamp_, size};
        if (size > best.size) best = {i - size + 1, j - size + 1, size};
      }
      std::swap(previous, current);
    }
    while (best.a > a_low && best.b > b_low && a_[best.a - 1] == b_[best.b - 1]) --best.a, --best.b, ++best.size;
    while (best.a + best.size < a_high && best.b + best.size < b_high &&
           a_[best.a + best.size] == b_[best.b + best.size])
      ++best.size;
    return best;
  }

  struct Cell {
    int64_t stamp = -1;
    int32_t size = 0;
  };
  const int32_t *a_, *b_;
  int64_t a_size_, b_size_, stamp_ = 0;
  std::vector<int32_t> first_, next_;
  std::vector<Cell> cells_;
};

// Where the other side has tokens and this one has none: the token after the gap, at the end the one before it.
void mark_beside(int64_t gap, int64_t size, uint8_t* flags) {
  if (gap < size)
    flags[gap] = 1;
  else if (gap > 0)
    flags[gap - 1] = 1;
}

}  // namespace

void changed_segments(const int32_t* a, int64_t a_size, const int32_t* b, int64_t b_size, int64_t min_match,
                      bool autojunk, int insertions, uint8_t* a_changed, uint8_t* b_changed) {
  std::memset(a_changed, 0, a_size);
  std::memset(b_changed, 0, b_size);
  std::vector<Block> blocks = Matcher(a, a_size, b, b_size, autojunk).blocks(min_match);
  blocks.push_back({a_size, b_size, 0});
  int64_t from_a = 0, from_b = 0;
  for (const Block& block : blocks) {
    const bool in_a = from_a < block.a, in_b = from_b < block.b;
    if ((in_a && in_b) || insertions > 0) {
      std::fill(a_changed + from_a, a_changed + block.a, 1);
      std::fill(b_changed + from_b, b_changed + block.b, 1);
      if (insertions > 1 && in_a && !in_b) mark_beside(block.b, b_size, b_changed);
      if (insertions > 1 && in_b && !in_a) mark_beside(block.a, a_size, a_changed);
    }
    from_a = block.a + block.size;
    from_b = block.b + block.size;
  }
}

}  // namespace mmfast
