// Python sees addresses as integers; the wrappers in mmfast/ops check dtypes, shapes and devices first.
#include <pybind11/pybind11.h>

#include "ops.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "mmfast native ops: raw pointers in and out";
  m.attr("have_cuda") = bool(MMFAST_HAVE_CUDA);
  m.def("cpu_isa", &mmfast::cpu_isa);
}
