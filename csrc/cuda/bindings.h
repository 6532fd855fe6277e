// The CUDA ops as Python functions: in mmfast._C, and in the emulated module of the tests.
#pragma once
#include <pybind11/pybind11.h>

namespace mmfast {
void bind_cuda(pybind11::module_& m);
}
