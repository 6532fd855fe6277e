// What `mmfast doctor` says of CUDA: the runtime linked in, and the newest CUDA the driver knows (0: no driver).
#include <cuda_runtime_api.h>

#include "cuda/ops.h"

namespace mmfast {

int cuda_runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int cuda_driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

}  // namespace mmfast
