"""The folds of Triton, and the table of all: which backend folds how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mmfast.ops.dispatch import choose
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.outcome import Kernels as TorchFolds  # what other backends do not replace is theirs too


class TritonFolds(TorchFolds):
    """The folds of kernels/logprob.py."""

    low_precision_tiles = True

    def __init__(self) -> None:
        from mmfast.kernels import logprob

        vars(self).update(forward=logprob.fold_forward, gradient=logprob.fold_gradient, finish=logprob.fold_finish)


FOLDS: dict[str, Callable[[], TorchFolds]] = {
    "torch": TorchFolds, "cpu": partial(NativeFolds, "cpu"), "cuda": partial(NativeFolds, "cuda"), "triton": TritonFolds
}  # fmt: skip
IN_FP32 = dict.fromkeys(FOLDS, "")
IN_FP64 = IN_FP32 | dict.fromkeys(("cuda", "triton"), "float64 runs on backend 'torch' there")


def folds_for(op: str, x: Tensor, backend: str) -> TorchFolds:
    """Returns the folds of one call: of `backend`, or of the first that suits where it is ""."""
    return FOLDS[choose(op, x.device, IN_FP64 if x.dtype == torch.float64 else IN_FP32, backend or None)]()
