"""float32 that is float32 on a GPU too."""

from __future__ import annotations

import torch


def keep_float32(dtype: torch.dtype) -> None:
    """Called before a model of `dtype` runs; for float32 it turns TF32 off in this process.

    torch lets cudnn round what a convolution reads (the pixels under a tower's patches) to 10 bits, and cudnn does so
    for some sizes of a batch: a picture's features depended on how many were beside it, by 1e-3 nat an answer, where
    fp32 is held to 1e-4. Containers turn it on for matrix products too (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    """
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
