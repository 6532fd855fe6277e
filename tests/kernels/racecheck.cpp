// A racecheck for emulated kernels. They are compiled with -fsanitize=thread, whose calls before every access to memory end
// here instead of in its runtime: who wrote a byte last, and who read it, between which barriers (emulate.h's epochs).
// A race is an access by another thread of the block with no barrier between the two, or by another block of the launch,
// where one of the two writes. Shuffles are no barriers for memory.
#include <iterator>
#include <unordered_map>

#include "cuda/common.cuh"

namespace {
using mmfast::emulate::block;

struct Byte {
  uint64_t written = 0, read = 0, first_read = 0;  // epochs; 0: never
  uint32_t writer = 0, reader = 0;                 // threads
  bool readers = false;                            // more than one in this epoch
};
constexpr uintptr_t kPage = 4096;
std::unordered_map<uintptr_t, std::vector<Byte>>& pages() {
  static std::unordered_map<uintptr_t, std::vector<Byte>> all;
  return all;
}
bool watching = false, inside = false;
uint64_t accesses[17];  // to global and shared memory since it is watched, by their bytes

void fault(const char* at, bool shared, const char* before, const char* now, uint32_t other, uint32_t thread) {
  auto& b = block();
  if (!b.fault.empty()) return;
  const uint3 place = b.running->place.block;
  b.fault = std::string("race on ") + (shared ? "shared" : "global") + " memory: thread " + std::to_string(thread) +
            " of block (" + std::to_string(place.x) + ", " + std::to_string(place.y) + ") " + now + " what " + at +
            std::to_string(other) + " " + before + " with no barrier between them";
}

}  // namespace

// Shared memory is `static` here: everything of that kind in this module lies between these two.
extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;

namespace {
void touch(uintptr_t address, size_t size, bool write) {
  auto& b = block();
  if (!watching || inside || !b.running) return;
  const auto within = [&](const void* begin, size_t bytes) { return address - uintptr_t(begin) < bytes; };
  if (within(b.running->stack.get(), mmfast::emulate::kStack)) return;  // its own, and then what is the emulation's
  if (within(&b, sizeof b) || within(b.fibres.data(), b.fibres.size() * sizeof b.fibres[0])) return;
  inside = true;
  if (size <= 16) ++accesses[size];
  const bool shared = address >= uintptr_t(&__bss_start) && address < uintptr_t(&_end);
  const uint32_t me = b.running->place.thread.x;
  for (uintptr_t at = address; at < address + size; ++at) {
    auto& page = pages()[at / kPage];
    if (page.empty()) page.resize(kPage);
    Byte& byte = page[at % kPage];
    // An access by a thread of an epoch of this launch that this one had to wait for
    const auto elsewhere = [&](uint64_t epoch) { return !shared && epoch >= b.first_of_launch && epoch < b.first_of_block; };
    const char *thread = "thread ", *other_block = "another block, thread ";
    if (byte.written == b.epoch && byte.writer != me) fault(thread, shared, "wrote", write ? "writes" : "reads", byte.writer, me);
    if (elsewhere(byte.written)) fault(other_block, shared, "wrote", write ? "writes" : "reads", byte.writer, me);
    if (write && byte.read == b.epoch && (byte.readers || byte.reader != me))
      fault(thread, shared, "read", "writes", byte.reader, me);
    if (write && elsewhere(byte.first_read)) fault(other_block, shared, "read", "writes", byte.reader, me);
    if (write) {
      byte.written = b.epoch;
      byte.writer = me;
      continue;
    }
    if (byte.first_read < b.first_of_launch) byte.first_read = b.epoch;
    byte.readers = byte.read == b.epoch && (byte.readers || byte.reader != me);
    byte.read = b.epoch;
    byte.reader = me;
  }
  inside = false;
}
}  // namespace

void watch_memory(bool on) {
  watching = on;
  pages().clear();
  std::fill(std::begin(accesses), std::end(accesses), 0);
}
uint64_t accesses_of(size_t bytes) { return accesses[bytes]; }

#define HOOKS(size)                                                                                    \
  void __tsan_read##size(void* at) { touch(uintptr_t(at), size, false); }                              \
  void __tsan_write##size(void* at) { touch(uintptr_t(at), size, true); }                              \
  void __tsan_unaligned_read##size(void* at) { touch(uintptr_t(at), size, false); }                    \
  void __tsan_unaligned_write##size(void* at) { touch(uintptr_t(at), size, true); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* at, size_t size) { touch(uintptr_t(at), size, false); }
void __tsan_write_range(void* at, size_t size) { touch(uintptr_t(at), size, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
unsigned char __tsan_atomic8_load(const volatile unsigned char* at, int) { return *at; }
int __tsan_atomic32_fetch_add(volatile int* at, int value, int) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }
}
