"""The optimiser, its groups, its schedule, and the step that skips itself on the device."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmfast.config import Optim
from mmfast.packages import how_to_install


def check_optimizer(spec: Optim) -> None:
    """Raise before the model loads if what was asked for is not installed."""
    if (spec.name != "adamw" or spec.master != "fp32") and importlib.util.find_spec("torchao") is None:
        raise ValueError(f"optim.name/master: this optimiser is torchao's: {how_to_install('eightbit')}")


def build_optimizer(
    spec: Optim, named: dict[str, nn.Parameter], projector: set[int], vision: set[int]
) -> torch.optim.Optimizer:
    """Groups by learning rate (language, projector, vision) and decay. `projector`, `vision`: ids of their parameters.

    Norms, biases and embeddings have no decay; neither has anything of one dimension.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in named.items():
        rate = spec.lr
        if id(p) in projector:
            rate = spec.projector_lr or spec.lr
        elif id(p) in vision:
            rate = spec.vision_lr or spec.lr
        decays = p.dim() > 1 and "embed" not in name and "norm" not in name.lower()
        groups.setdefault((rate, spec.weight_decay if decays else 0.0), []).append(p)
    params: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    common: dict[str, Any] = {"lr": spec.lr, "betas": tuple(spec.betas), "eps": spec.eps}
    if spec.name == "adamw" and spec.master == "fp32":
        return torch.optim.AdamW(params, fused=True, **common)
    from torchao.optim import AdamW8bit, _AdamW

    kind = AdamW8bit if spec.name == "adamw8bit" else _AdamW
    return kind(params, bf16_stochastic_round=spec.master == "bf16-stochastic", **common)


def rate_at(spec: Optim, step: int, total: int) -> float:
    """Share of the peak rate that step `step` (from 1) of `total` is taken with."""
    warmup = math.ceil(spec.warmup * total) if spec.warmup < 1 else int(spec.warmup)
    if step <= warmup:
        return step / max(warmup, 1)
    past = (step - warmup) / max(total - warmup, 1)  # in (0, 1]
    past = max(0.0, past - 1 / max(total - warmup, 1))  # the first step after the warm-up is at the peak
    if spec.schedule == "constant":
        share = 1.0
    elif spec.schedule == "linear":
        share = 1 - past
    elif spec.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * past))
    else:
        share = min(1.0, (1 - past) / spec.decay_share)
    return spec.min_lr + (1 - spec.min_lr) * share


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak"] * share)
        else:
            group["lr"] = group["peak"] * share


def clip_gradients(params: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before, on the device."""
    grads = [p.grad for p in params if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads, foreach=None)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if limit > 0:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
    return norm


def guarded_step(optimizer: torch.optim.Optimizer, norm: Tensor, loss: Tensor) -> Tensor:
    """One optimiser step, undone on the device if the gradient or the loss is not finite. Returns 1.0 where it was.

    AdamW's found_inf leaves weights and moments untouched. torchao's optimisers have no such input: there the gradient
    is zeroed, and the rate for this one step, so that weights stay and the moments only decay. torchao keeps its rate
    on the CPU: the step gets a copy of it on the gradients' device, where `bad` is, and nothing waits.
    """
    bad = torch.logical_not(torch.isfinite(norm) & torch.isfinite(loss)).float()
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
        return bad
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = (1 - bad) * rate
        for p in group["params"]:
            if p.grad is not None:
                p.grad = torch.where(bad.bool(), torch.zeros_like(p.grad), p.grad)
    try:
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return bad
