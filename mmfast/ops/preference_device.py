"""preference_loss on a GPU: CUDA (csrc/cuda/preference.cu, one launch) and Triton (kernels/preference.py, two)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import native
from .kinds import DIVERGENCES, KINDS
from .launch import address, stream
from .preference_math import PreferenceSpec
from .rows import DTYPE_CODES, invert, segment_sum_torch

Raw = tuple[Tensor, Tensor, Tensor]


def preference_cuda(
    logps: Tensor, index: Tensor | None, weights: Tensor | None, ref_logps: Tensor | None, responses: Tensor,
    pairs: Tensor, pair_weights: Tensor | None, delta: Tensor | None, spec: PreferenceSpec, want_grad: bool,
    module: Any = None,
) -> Raw:  # fmt: skip
    """`module` holds the native functions; tests put in one that runs the same kernel on the host."""
    module = module or native()
    count = logps.shape[0] if index is None else index.shape[0]
    sizes = (logps.shape[0], count, responses.shape[0] - 1, pairs.shape[0])
    loss, metrics = logps.new_empty(()), logps.new_empty((6, pairs.shape[0]))
    # An index of no tokens has no address, which the kernel takes for no index: it would leave the gradient unwritten.
    new = torch.empty_like if count else torch.zeros_like
    grad = new(logps) if want_grad else logps.new_empty(0)
    scratch = logps.new_empty(module.cuda_preference_scratch(*sizes), dtype=torch.uint8)
    tensors = (logps, index, weights, ref_logps, responses, pairs, pair_weights, delta)
    module.cuda_preference(
        DTYPE_CODES[logps.dtype], *(address(x) for x in tensors), *sizes, *spec,
        loss.data_ptr(), metrics.data_ptr(), grad.data_ptr() if want_grad else 0, scratch.data_ptr(),
        stream(logps),
    )  # fmt: skip
    return loss, metrics, grad


def preference_triton(
    logps: Tensor, index: Tensor | None, weights: Tensor | None, ref_logps: Tensor | None, responses: Tensor,
    pairs: Tensor, pair_weights: Tensor | None, delta: Tensor | None, spec: PreferenceSpec, want_grad: bool,
) -> Raw:  # fmt: skip
    from mmfast.kernels.preference import preference

    settings = spec._asdict() | {"kind": KINDS[spec.kind], "divergence": DIVERGENCES[spec.divergence]}
    loss, metrics, by_token = preference(
        logps, index, weights, ref_logps, responses, pairs, pair_weights, delta, settings, want_grad
    )
    if not want_grad or index is None:
        return loss, metrics, by_token.to(logps.dtype)
    grad = segment_sum_torch(by_token, *invert(index, logps.shape[0]))
    return loss, metrics, grad.to(logps.dtype)
