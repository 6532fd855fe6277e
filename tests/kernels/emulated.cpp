// The CUDA ops run by tests/kernels/emulate.h on the host, as a Python module.
#include "bindings.h"
#include "cuda/common.cuh"

// racecheck.cpp
void watch_memory(bool on);
uint64_t accesses_of(size_t bytes);

// planted.cpp
void pass_on(int* out, unsigned threads, bool first, bool barrier);
void count_blocks(int* word, unsigned blocks);

PYBIND11_MODULE(emulated, m) {
  mmfast::bind_cuda(m);
  m.def("order", [](int order) { mmfast::emulate::order() = mmfast::emulate::Order(order); });
  m.def("only", [](int64_t block) { mmfast::emulate::only() = block; });
  m.def("watch", &watch_memory);
  m.def("accesses", &accesses_of);
  m.def("pass_on", [](int64_t out, unsigned threads, bool first, bool barrier) {
    pass_on(reinterpret_cast<int*>(out), threads, first, barrier);
  });
  m.def("count_blocks", [](int64_t word, unsigned blocks) { count_blocks(reinterpret_cast<int*>(word), blocks); });
}
