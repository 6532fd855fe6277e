"""preference_loss beside a careful eager loss: whole calls with backward, and the kernel alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.device import Row, Run, Setup, graphed, hundred, result, timed
from bench.timing import compared, interleave
from mmfast.ops.preference import preference_loss, preference_raw
from mmfast.ops.preference_kernels import PreferenceTensors
from mmfast.ops.preference_math import make_spec
from mmfast.ops.rows import invert


def eager_dpo(logps: Tensor, ref: Tensor, w: Tensor, entry: Tensor, entries: int, pairs: Tensor, beta: float) -> Tensor:
    """What a careful user writes: two segment sums, a log-sigmoid, the metrics TRL logs."""
    s = torch.zeros(entries, dtype=logps.dtype, device=logps.device).index_add(0, entry, w * logps)
    s_ref = torch.zeros_like(s).index_add(0, entry, w * ref)
    ratio = s - s_ref
    chosen, rejected = ratio[pairs[:, 0]], ratio[pairs[:, 1]]
    loss = -F.logsigmoid(beta * (chosen - rejected)).sum() / len(pairs)
    with torch.no_grad():
        rewards = beta * chosen, beta * rejected
        metrics = rewards[0] - rewards[1], s[pairs[:, 0]], s[pairs[:, 1]], rewards[0] > rewards[1]
    assert len(metrics) == 4
    return loss


def loss_of(logps: Tensor, ref: Tensor, responses: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    return preference_loss(logps, ref, responses, pairs, weights=weights).loss


def backward(loss: Callable[..., Tensor], *arguments: Any) -> None:
    torch.autograd.backward(loss(*arguments))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Whole calls with backward; and the kernel alone. A round is 100 calls."""
    for pairs_count, length in [(4, 120)] if options.quick else [(1, 120), (4, 120), (16, 150), (64, 150)]:
        entries = 2 * pairs_count
        n = entries * length
        g = torch.Generator().manual_seed(0)
        logps = (-torch.rand(n, generator=g)).requires_grad_()
        ref, w = -torch.rand(n, generator=g), torch.rand(n, generator=g) + 0.5
        responses = torch.arange(0, n + 1, length, dtype=torch.int32)
        pairs = torch.arange(entries).view(-1, 2)
        entry = torch.arange(entries).repeat_interleave(length)
        spec = make_spec("sigmoid", pairs=pairs_count)
        raw = PreferenceTensors(logps.detach(), None, w, ref, responses, pairs, None, None)
        runs: dict[str, Run] = {
            "eager": partial(backward, eager_dpo, logps, ref, w, entry, entries, pairs, 0.1),
            "mmfast": partial(backward, loss_of, logps, ref, responses, pairs, w),
            "mmfast kernel": partial(preference_raw, raw, spec, backend="cpu"),
        }
        times = interleave({name: partial(hundred, run) for name, run in runs.items()}, options.repeats)
        each = {name: [t / 100 for t in seconds] for name, seconds in times.items()}
        yield from compared("preference_loss", f"P={pairs_count},L={length}", each, "eager", mode="forward+backward")


def device_rows(setup: Setup) -> Iterator[Row]:
    for count, length in [(2, 10)] if setup.dry else [(1, 120), (16, 120), (64, 120), (256, 120)]:
        if setup.late(f"preference_loss {count} pairs"):
            return
        entries, n = 2 * count, 2 * count * length
        logps = -torch.rand(n, device=setup.device)
        ref, w = -torch.rand(n, device=setup.device), torch.rand(n, device=setup.device) + 0.5
        responses = torch.arange(0, n + 1, length, dtype=torch.int32, device=setup.device)
        pairs = torch.arange(entries, device=setup.device).view(-1, 2)
        entry = torch.arange(entries, device=setup.device).repeat_interleave(length)
        index = torch.randperm(n, device=setup.device)
        spec = make_spec("sigmoid", pairs=count)
        leaf = logps.clone().requires_grad_()
        backend = "cuda" if setup.device.type == "cuda" else "cpu"
        plain = PreferenceTensors(logps, None, w, ref, responses, pairs, None, None)
        copies, offsets = invert(index, n)
        indexed = plain._replace(rows=index, copies=copies, offsets=offsets)
        kernels = {
            name: graphed(partial(preference_raw, tensors, spec, True, backend), setup.device)
            for name, tensors in {"mmfast kernel": plain, "mmfast kernel, index": indexed}.items()
        }
        calls: dict[str, Run] = {
            "eager": partial(backward, eager_dpo, leaf, ref, w, entry, entries, pairs, 0.1),
            "mmfast": partial(backward, loss_of, leaf, ref, responses, pairs, w),
        }
        for name, seconds in timed(setup, kernels).items():
            yield result(
                setup, "preference_loss", name, "device time of one call", [count, length], [s / 100 for s in seconds]
            )
        for name, seconds in timed(setup, calls).items():
            yield result(setup, "preference_loss", name, "forward+backward", [count, length], seconds)
