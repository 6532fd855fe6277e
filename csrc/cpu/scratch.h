// A buffer for the length of a call. Static, like all that files of several instruction sets share (cpu/isa.h).
#pragma once
#include <cstdint>
#include <cstdlib>

namespace mmfast {
namespace {

struct Scratch {
  explicit Scratch(int64_t bytes) : data(static_cast<char*>(::aligned_alloc(64, (bytes + 4095) / 4096 * 4096))) {}
  ~Scratch() { ::free(data); }
  Scratch(const Scratch&) = delete;
  char* data;
};

}  // namespace
}  // namespace mmfast
