// Every native op, declared once. Raw pointers in and out; no torch, no Python.
// Shapes stand behind each pointer; a legend of the letters is in docs/ops.md.
#pragma once
#include <cstdint>

namespace mmfast {

// Instruction set chosen at run time, best first: "avx512", "avx2", "baseline"; MMFAST_CPU caps it.
const char* cpu_isa();

}  // namespace mmfast
