"""Without a device the Triton kernels of this folder run in Triton's interpreter, on CPU tensors."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
