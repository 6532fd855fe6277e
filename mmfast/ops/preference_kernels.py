"""preference_loss in native code (preference.cpp and preference.cu of csrc/) and in Triton (kernels/preference.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import native
from .launch import stream
from .preference_math import PreferenceSpec
from .rows import invert, segment_sum_torch

Raw = tuple[Tensor, Tensor, Tensor]  # loss[], metrics[6, P] in the order of METRICS, d loss / d logps[U]


class PreferenceTensors(NamedTuple):
    """The tensors of one call as kernels take them: contiguous, floats of one dtype (fp32 or fp64)."""

    logps: Tensor  # [U]
    rows: Tensor | None  # int64 [N], the log-prob that scores each token; None: in order
    weights: Tensor | None  # [N]
    ref_logps: Tensor | None  # [N]
    responses: Tensor  # int32 [R+1]
    pairs: Tensor  # int64 [P,2]
    pair_weights: Tensor | None  # [P]
    delta: Tensor | None  # []
    copies: Tensor | None = None  # int64 [N] and [U+1], the inverse of rows; the backends that need it make it
    offsets: Tensor | None = None

    @property
    def tokens(self) -> int:
        """N is the number of scored tokens."""
        return self.logps.shape[0] if self.rows is None else self.rows.shape[0]

    def inverse(self) -> tuple[Tensor, Tensor]:
        """Where the tokens of each log-prob stand: copies[offsets[u]:offsets[u + 1]]."""
        if self.copies is not None and self.offsets is not None:
            return self.copies, self.offsets
        assert self.rows is not None
        return invert(self.rows, self.logps.shape[0])


def preference_native(
    half: str, tensors: PreferenceTensors, spec: PreferenceSpec, want_grad: bool, module: Any = None
) -> Raw:
    """`half` is "cpu" or "cuda"; tests put in a module that runs the CUDA kernel on the host."""
    module = module or native()
    logps, on_gpu = tensors.logps, half == "cuda"
    sizes = (logps.shape[0], tensors.tokens, tensors.responses.shape[0] - 1, tensors.pairs.shape[0])
    loss, metrics = logps.new_empty(()), logps.new_empty((6, sizes[3]))
    # An index of no tokens has no address, which a kernel takes for no index: it would leave the gradient unwritten.
    new = torch.empty_like if sizes[1] else torch.zeros_like
    grad = new(logps) if want_grad else logps.new_empty(0)
    scratch = logps.new_empty(sizes[1] + sizes[3], dtype=torch.float64) if on_gpu else None
    if on_gpu and want_grad and tensors.rows is not None:
        copies, offsets = tensors.inverse()
        tensors = tensors._replace(copies=copies, offsets=offsets)
    run = getattr(module, f"{half}_preference_{'f64' if logps.dtype == torch.float64 else 'f32'}")
    run(*tensors, *sizes, loss, metrics, grad if want_grad else None, scratch, *spec, stream(logps))
    return loss, metrics, grad


def preference_triton(tensors: PreferenceTensors, spec: PreferenceSpec, want_grad: bool) -> Raw:
    from mmfast.kernels.preference import preference

    numbers, kind, divergence, per_token = spec.formula()
    loss, metrics, by_token = preference(
        tensors, (*numbers, spec.sft_weight, spec.ld_alpha, spec.scale),
        {"KIND": kind, "DIVERGENCE": divergence, "PER_TOKEN": per_token, "AVERAGE": spec.average,
         "SFT_AVERAGE": spec.sft_average}, want_grad,
    )  # fmt: skip
    if want_grad and tensors.rows is not None:
        by_token = segment_sum_torch(by_token, *tensors.inverse())
    return loss, metrics, by_token.to(tensors.logps.dtype)
