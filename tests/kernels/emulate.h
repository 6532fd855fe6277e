// Runs the CUDA kernels on the host, thread by thread, so that their indexing, barriers and reductions are tested where
// there is no device. Each thread of a block is a fibre that runs to its next barrier or shuffle and then gives way;
// blocks follow one another. Threads of a warp that wait at different places are an error, as on the device.
// Blocks, warps and lanes run in an order(): a kernel that lacks a barrier but happens to write first in one order does
// not in another. Whoever watches memory (tests/kernels/racecheck.cpp) reads off the epoch, which rises at each barrier,
// whether two accesses had one between them, and leaves what it found as the fault.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#undef __shared__
#define __shared__ static
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#define threadIdx (mmfast::emulate::current().thread)
#define blockIdx (mmfast::emulate::current().block)
#define blockDim (mmfast::emulate::current().dim)
#define gridDim (mmfast::emulate::current().grid)

namespace mmfast::emulate {

struct Place {
  uint3 thread, block;
  dim3 dim, grid;
};
enum class Stop { start, barrier, shuffle, end };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Stop stop = Stop::start;
  Place place;
  unsigned char sent[16];
};

constexpr size_t kStack = 64 * 1024;
struct Block {
  std::vector<Fibre> fibres;
  Fibre* running = nullptr;  // null while the scheduler runs
  ucontext_t scheduler;
  std::function<void()> body;
  uint64_t epoch = 0, first_of_launch = 0, first_of_block = 0;
  std::string fault;
};
inline Block& block() {
  static Block b;
  return b;
}
constexpr unsigned kResident = 3;  // blocks of a joined launch: few, so that each has several turns
enum class Order : int { ascending, descending, random };
inline Order& order() {
  static Order o = Order::ascending;
  return o;
}
inline std::vector<unsigned> turns(unsigned count) {
  static std::mt19937 random(0);
  std::vector<unsigned> result(count);
  std::iota(result.begin(), result.end(), 0u);
  if (order() == Order::descending) std::reverse(result.begin(), result.end());
  if (order() == Order::random) std::shuffle(result.begin(), result.end(), random);
  return result;
}
inline int64_t& only() {  // the one block that runs, of a grid that is too large for all to run; -1: all do
  static int64_t i = -1;
  return i;
}
inline Place& current() { return block().running->place; }

inline void give_way(Stop why) {
  block().running->stop = why;
  swapcontext(&block().running->context, &block().scheduler);
}
inline void enter() {
  block().body();
  give_way(Stop::end);
}

inline void resume(Block& b, Fibre& f) {
  b.running = &f;
  swapcontext(&b.scheduler, &f.context);
  b.running = nullptr;
}

// Runs one warp to its next barrier, or to its end (then false). Its live threads must all meet at each stop.
inline bool to_barrier(Block& b, unsigned begin, unsigned end) {
  for (;;) {
    Stop reached = Stop::end;
    for (const unsigned lane : turns(end - begin)) {
      Fibre& f = b.fibres[begin + lane];
      if (f.stop == Stop::end) continue;
      resume(b, f);
      if (f.stop == Stop::end) continue;
      if (reached != Stop::end && f.stop != reached) throw std::logic_error("threads of one warp wait at different places");
      reached = f.stop;
    }
    if (reached != Stop::shuffle) return reached == Stop::barrier;
  }
}

inline void run_block(Block& b, dim3 grid, uint3 at, unsigned threads) {
  b.first_of_block = b.epoch + 1;
  for (unsigned i = 0; i < threads; ++i) {
    Fibre& f = b.fibres[i];
    if (!f.stack) f.stack.reset(new char[kStack]);
    f.place = {uint3{i, 0, 0}, at, dim3(threads), grid};
    f.stop = Stop::start;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, reinterpret_cast<void (*)()>(enter), 0);
  }
  for (bool live = true; live;) {
    live = false;
    ++b.epoch;
    for (const unsigned warp : turns((threads + 31) / 32)) live |= to_barrier(b, 32 * warp, std::min(32 * warp + 32, threads));
  }
}

inline void run(dim3 grid, unsigned threads, std::function<void()> body) {
  Block& b = block();
  b.body = std::move(body);
  b.first_of_launch = b.epoch + 1;
  if (b.fibres.size() < threads) b.fibres.resize(threads);
  for (const unsigned i : only() < 0 ? turns(grid.x * grid.y * grid.z) : std::vector<unsigned>{unsigned(only())})
    run_block(b, grid, uint3{i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y}, threads);
  if (!b.fault.empty()) throw std::logic_error(std::exchange(b.fault, {}));
}

template <class T>
T shuffle_xor(T value, int mask) {
  Fibre* self = block().running;
  static_assert(sizeof(T) <= sizeof self->sent, "too large to shuffle");
  std::memcpy(self->sent, &value, sizeof value);
  give_way(Stop::shuffle);
  std::memcpy(&value, block().fibres[self->place.thread.x ^ unsigned(mask)].sent, sizeof value);
  give_way(Stop::shuffle);  // nobody sends again before all have read
  return value;
}

inline unsigned ballot(bool vote) {
  Fibre* self = block().running;
  self->sent[0] = vote;
  give_way(Stop::shuffle);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    votes |= unsigned(block().fibres[self->place.thread.x / 32 * 32 + lane].sent[0]) << lane;
  give_way(Stop::shuffle);
  return votes;
}

}  // namespace mmfast::emulate

#define __popc(bits) __builtin_popcount(bits)
#define __ballot_sync(lanes, vote) mmfast::emulate::ballot(vote)
#define __syncthreads() mmfast::emulate::give_way(mmfast::emulate::Stop::barrier)
#define __shfl_xor_sync(lanes, value, mask) mmfast::emulate::shuffle_xor(value, mask)
