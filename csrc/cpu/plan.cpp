// One optimiser step's pairs -> packs: `world` ranks times the least number of micro-batches found.
//
// Bin packing in which items that share a beginning weigh less together. Pairs are first gathered into pieces: the
// largest subtrees whose cost stays under a limit, so that a tree stays whole unless cutting it pays. Pieces then go,
// largest first, to the pack in which they fit best. A few limits and two orders are tried, and the best result is kept.
// Costs are integers, so every machine finds the same plan.
#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "ops.h"

namespace mmfast {
namespace {

constexpr int64_t kNoLimit = int64_t(1) << 60;

struct Load {
  int64_t tokens = 0, cost = 0;

  Load operator+(const Load& other) const { return {tokens + other.tokens, cost + other.cost}; }
  Load operator-(const Load& other) const { return {tokens - other.tokens, cost - other.cost}; }
  bool within(int64_t budget, int64_t limit) const { return tokens <= budget && cost <= limit; }
};

struct Forest {
  const int32_t* parent;
  std::vector<Load> load;  // of each node
};

struct Piece {
  std::vector<int32_t> pairs;
  std::vector<int32_t> nodes;  // every node its pairs need, up to the roots
  Load load;
};

struct Result {
  std::vector<int32_t> pack_of;  // of each pair
  std::vector<Load> packs;
  int64_t slowest = kNoLimit;    // sum over micro-batches of the dearest pack: ranks wait for one another
  int64_t total = kNoLimit;
};

// Sizes of piece worth trying, falling: around the mean of a pack, and around the dearest pair, which bounds it below.
std::vector<int64_t> limits(int64_t mean, int64_t pair) {
  std::vector<int64_t> out{kNoLimit, 0};
  for (int64_t percent : {300, 200, 150, 125, 100, 75, 50, 25, 12}) out.push_back(mean * percent / 100);
  for (int64_t percent : {200, 150, 133, 120, 110, 100}) out.push_back(pair * percent / 100);
  std::sort(out.rbegin(), out.rend());
  return out;
}

class Step {
 public:
  Step(Forest forest, const int32_t* leaves, int64_t pairs, int64_t budget)
      : forest_(std::move(forest)), leaves_(leaves), pairs_(pairs), budget_(budget), seen_(forest_.load.size(), -1) {
    const int64_t n = int64_t(forest_.load.size());
    depth_.resize(n);
    above_.resize(n);
    below_ = forest_.load;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t p = forest_.parent[i];
      if (p >= 0) depth_[i] = depth_[p] + 1, above_[i] = above_[p] + forest_.load[p];
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      const int32_t p = forest_.parent[i];
      if (p >= 0) below_[p] = below_[p] + below_[i];
    }
    meets_.resize(pairs);
    for (int64_t p = 0; p < pairs; ++p) {
      meets_[p] = meet(leaves[2 * p], leaves[2 * p + 1]);
      dearest_pair_ = std::max(dearest_pair_, added(int32_t(p), -2, nullptr).cost);
    }
  }

  Load total() const { return std::accumulate(forest_.load.begin(), forest_.load.end(), Load{}); }

  // Whole subtrees under `limit`; pairs whose own subtree is above it are cut one after another.
  std::vector<Piece> pieces(int64_t limit) {
    std::vector<int32_t> anchor(forest_.load.size());  // the largest subtree under the limit that a node is in, or -1
    for (size_t i = 0; i < anchor.size(); ++i) {
      const int32_t p = forest_.parent[i];
      if (p >= 0 && anchor[p] >= 0) anchor[i] = anchor[p];
      else anchor[i] = (above_[i] + below_[i]).within(budget_, limit) ? int32_t(i) : -1;
    }
    // A pair whose sides share nothing is a piece by itself, gathered with those between the same two roots.
    std::vector<std::tuple<int32_t, int32_t, int32_t, int32_t>> order(pairs_);
    for (int64_t p = 0; p < pairs_; ++p) {
      const int32_t a = leaves_[2 * p], b = leaves_[2 * p + 1], m = meets_[p];
      const int32_t home = m < 0 ? -1 : (anchor[m] >= 0 ? anchor[m] : m);
      order[p] = {home, std::max(a, b), b < 0 ? a : std::min(a, b), int32_t(p)};
    }
    std::sort(order.begin(), order.end());
    std::vector<Piece> out;
    int32_t stamp = next_stamp_, home_before = -2;
    for (const auto& [home, high, low, pair] : order) {
      (void)high, (void)low;
      const bool whole = home >= 0 && anchor[home] == home;
      if (home == home_before) {
        Piece& last = out.back();
        if (whole || (last.load + added(pair, stamp, nullptr)).within(budget_, limit)) {
          take(last, pair, stamp);
          continue;
        }
      }
      out.emplace_back();
      take(out.back(), pair, ++stamp);
      home_before = home;
    }
    next_stamp_ = stamp + 1;
    return out;
  }

  // Puts pieces, largest first, into `bins` packs (0: as many as it takes, opened when nothing else fits) and returns
  // how many were used, or -1 if a piece does not fit.
  int64_t place(std::vector<Piece>& pieces, int64_t world, int64_t bins, bool tight, Result* best) {
    std::vector<int32_t> order(pieces.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return tight ? pieces[a].load.tokens > pieces[b].load.tokens : pieces[a].load.cost > pieces[b].load.cost;
    });
    const bool grow = bins == 0;
    std::vector<std::vector<uint8_t>> held(bins, std::vector<uint8_t>(forest_.load.size(), 0));
    std::vector<Load> packs(bins);
    std::vector<int32_t> pack_of(pairs_);
    for (int32_t i : order) {
      const Piece& piece = pieces[i];
      int64_t chosen = -1;
      Load chosen_load = piece.load;  // of the pack, with the piece
      std::pair<int64_t, int64_t> chosen_rank{kNoLimit, kNoLimit};
      for (int64_t b = 0; b < bins; ++b) {
        Load more = piece.load;
        if (packs[b].tokens) {
          for (int32_t node : piece.nodes)
            if (held[b][node]) more = more - forest_.load[node];
        }
        const Load then = packs[b] + more;
        if (then.tokens > budget_) continue;
        const auto rank = tight ? std::pair{more.tokens, -packs[b].tokens} : std::pair{then.cost, more.cost};
        if (chosen < 0 || rank < chosen_rank) chosen = b, chosen_load = then, chosen_rank = rank;
      }
      if (chosen < 0) {
        if (!grow) return -1;
        chosen = bins++;
        held.emplace_back(forest_.load.size(), 0);
        packs.emplace_back();
      }
      packs[chosen] = chosen_load;
      for (int32_t node : piece.nodes) held[chosen][node] = 1;
      for (int32_t pair : piece.pairs) pack_of[pair] = int32_t(chosen);
    }
    if (!best) return bins;
    std::vector<int64_t> costs;
    for (const Load& pack : packs) costs.push_back(pack.cost);
    std::sort(costs.rbegin(), costs.rend());
    int64_t slowest = 0;
    for (int64_t i = 0; i < bins; i += world) slowest += costs[i];
    const int64_t total = std::accumulate(costs.begin(), costs.end(), int64_t(0));
    if (std::pair{slowest, total} < std::pair{best->slowest, best->total})
      *best = {std::move(pack_of), std::move(packs), slowest, total};
    return bins;
  }

  // The best of all limits and orders for so many packs; slowest == kNoLimit if none holds the step.
  Result search(int64_t world, int64_t bins) {
    Result best;
    const int64_t mean = total().cost / bins;
    int64_t largest = kNoLimit + 1;  // a limit at or above the largest piece so far would give the same pieces again
    for (int64_t limit : limits(mean, dearest_pair_)) {
      if (limit >= largest) continue;
      std::vector<Piece> cut = pieces(limit);
      largest = 0;
      for (const Piece& piece : cut) largest = std::max(largest, piece.load.cost);
      place(cut, world, bins, false, &best);
      place(cut, world, bins, true, &best);
    }
    return best;
  }

  // Packs that best fit decreasing takes, from whole trees down to single pairs.
  int64_t packs_needed() {
    int64_t needed = pairs_;
    for (int64_t limit : {kNoLimit, 4 * dearest_pair_, int64_t(0)}) {
      std::vector<Piece> cut = pieces(limit);
      bool fits = true;
      for (const Piece& piece : cut) fits = fits && piece.load.tokens <= budget_;
      if (!fits) return -1;  // only a pair by itself can be above the budget
      needed = std::min(needed, place(cut, 1, 0, true, nullptr));
    }
    return needed;
  }

 private:
  int32_t meet(int32_t a, int32_t b) const {  // lowest common ancestor; -1 where two trees have none
    if (b < 0) return a;
    while (a != b) {
      if (a < 0 || b < 0) return -1;
      int32_t& deeper = depth_[a] >= depth_[b] ? a : b;
      deeper = forest_.parent[deeper];
    }
    return a;
  }

  // What `pair` adds to the piece of `stamp`; the nodes are stamped if `into` is given.
  Load added(int32_t pair, int32_t stamp, Piece* into) {
    Load load;
    trail_.clear();
    for (int side = 0; side < 2; ++side) {
      for (int32_t node = leaves_[2 * pair + side]; node >= 0 && seen_[node] != stamp; node = forest_.parent[node]) {
        load = load + forest_.load[node];
        trail_.emplace_back(node, seen_[node]);
        seen_[node] = stamp;
      }
    }
    for (auto [node, before] : trail_) {
      if (into) into->nodes.push_back(node);
      else seen_[node] = before;
    }
    return load;
  }

  void take(Piece& piece, int32_t pair, int32_t stamp) {
    piece.load = piece.load + added(pair, stamp, &piece);
    piece.pairs.push_back(pair);
  }

  Forest forest_;
  const int32_t* leaves_;
  int64_t pairs_, budget_;
  std::vector<int32_t> depth_, meets_, seen_;
  std::vector<Load> above_, below_;  // of a node: its ancestors; itself and its descendants
  std::vector<std::pair<int32_t, int32_t>> trail_;
  int64_t dearest_pair_ = 0;
  int32_t next_stamp_ = 0;
};

// Packs of like cost run at the same time; within a micro-batch the dearest goes to the rank with least so far.
void assign(const Result& best, int64_t world, int32_t* pack_of, int64_t* pack_tokens, int64_t* pack_cost) {
  const int64_t bins = int64_t(best.packs.size());
  std::vector<int32_t> order(bins), slot(bins), ranks(world);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return best.packs[a].cost > best.packs[b].cost; });
  std::vector<int64_t> load(world, 0);
  for (int64_t first = 0; first < bins; first += world) {
    std::iota(ranks.begin(), ranks.end(), 0);
    std::stable_sort(ranks.begin(), ranks.end(), [&](int32_t a, int32_t b) { return load[a] < load[b]; });
    for (int64_t r = 0; r < world; ++r) {
      const int32_t bin = order[first + r];
      slot[bin] = int32_t(first + ranks[r]);
      load[ranks[r]] += best.packs[bin].cost;
      pack_tokens[slot[bin]] = best.packs[bin].tokens;
      pack_cost[slot[bin]] = best.packs[bin].cost;
    }
  }
  for (size_t p = 0; p < best.pack_of.size(); ++p) pack_of[p] = slot[best.pack_of[p]];
}

}  // namespace

int64_t pack_step(const int32_t* parent, const int64_t* tokens, const int64_t* cost, int64_t nodes,
                  const int32_t* leaves, int64_t pairs, int64_t world, int64_t budget, int32_t* pack_of,
                  int64_t* pack_tokens, int64_t* pack_cost) {
  if (pairs == 0) return 0;
  Forest forest{parent, {}};
  for (int64_t i = 0; i < nodes; ++i) forest.load.push_back({tokens[i], cost[i]});
  Step step(std::move(forest), leaves, pairs, budget);
  const int64_t needed = step.packs_needed();
  if (needed < 0) return -1;
  int64_t micro_batches = (needed + world - 1) / world;
  const int64_t least = std::max<int64_t>(1, (step.total().tokens + world * budget - 1) / (world * budget));
  Result best = step.search(world, world * micro_batches);
  while (micro_batches > least || best.slowest == kNoLimit) {  // other orders may need fewer
    const int64_t next = best.slowest == kNoLimit ? micro_batches + 1 : micro_batches - 1;
    Result other = step.search(world, world * next);
    if (other.slowest == kNoLimit && best.slowest != kNoLimit) break;
    best = std::move(other);
    micro_batches = next;
  }
  assign(best, world, pack_of, pack_tokens, pack_cost);
  return micro_batches;
}

}  // namespace mmfast
