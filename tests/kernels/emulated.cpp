// The CUDA ops run by csrc/cuda/emulate.h on the host, as a Python module.
#include "cuda/bindings.h"

PYBIND11_MODULE(emulated, m) { mmfast::bind_cuda(m); }
