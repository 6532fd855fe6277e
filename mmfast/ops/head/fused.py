"""backend="triton-fused" of linear_logprob: a GEMM that never writes a logit, for passes without gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast.ops.arguments import check_range
from mmfast.ops.dispatch import available
from mmfast.ops.head.call import Call
from mmfast.ops.launch import LeanOp

NAME = "triton-fused"
DTYPES = (torch.bfloat16, torch.float16)


def fused_logprob(call: Call, top1: bool) -> Tensor:
    """Returns log-probs only. top1: whether linear_logprob was asked for that too."""
    op, spec = f"linear_logprob: backend {NAME!r}", call.spec
    x, u, weight, _, bias, targets = call.head
    others = {"lora": u is not None, "return_entropy": spec.entropy, "return_logsumsq": spec.squares}
    others |= {"return_mean_logit": spec.total, "return_top1": top1}
    if reason := available("triton", x.device):
        raise ValueError(f"{op} cannot be used: {reason}")
    if used := [name for name, value in others.items() if value]:
        raise ValueError(f"{op} returns log-probs of hidden, weight and bias only: leave out {', '.join(used)}")
    x = x if call.rows is None else x.index_select(0, call.rows)
    if x.dtype not in DTYPES:
        raise ValueError(f"{op} takes bf16 or fp16, not {x.dtype}")
    if any(call.wants):
        raise ValueError(f"{op} makes no gradient: call it under torch.no_grad(), or choose another backend")
    check_range("linear_logprob", "targets", targets, 0, weight.shape[0])
    logp: Tensor = _fused(x, weight, targets, bias, spec.softcap, spec.temperature)[0]
    return logp


def _forward(
    x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float, temperature: float
) -> list[Tensor]:
    from mmfast.kernels.logprob_fused import fused_logprob as kernel

    bias = None if bias is None else bias.contiguous()
    return [kernel(x, weight, targets.contiguous(), bias, softcap or None, temperature)]


def _fake(x: Tensor, weight: Tensor, targets: Tensor, *options: object) -> list[Tensor]:
    return [x.new_empty(targets.shape[0], dtype=torch.float32)]


_fused = LeanOp("fused_logprob", _forward, _fake)
