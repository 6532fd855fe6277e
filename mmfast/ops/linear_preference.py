"""linear_preference_loss: linear_logprob, then preference_loss, in one call.

An algorithm of its own (chunks of whole components of the pair graph, their gradients made in the forward pass) was
slower than the two ops one after the other and took more memory: docs/ops/linear_preference_loss.md has the numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops.arguments import FLOATS, INDEX, check
from mmfast.ops.logprob import linear_logprob
from mmfast.ops.preference import PreferenceOutput, preference_loss, prepare
from mmfast.ops.rows import accumulator

OP = "linear_preference_loss"


def linear_preference_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_logps: Tensor | None,
    responses: Tensor,
    pairs: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    tile_budget: int | None = None,
    keep_budget: int | None = None,
    backend: str | None = None,
    **objective: Any,
) -> PreferenceOutput:
    """Arguments as in linear_logprob and preference_loss (`objective`: index, weights, loss, pair_weights, ...)."""
    check(OP, "hidden", hidden, FLOATS, ("T", "D"))
    check(OP, "targets", targets, INDEX, ("U",))
    # What is wrong with the loss's arguments is said before the head runs
    prepare(
        torch.empty_like(targets, dtype=accumulator(hidden.dtype)), ref_logps, responses, pairs, backend=backend,
        **objective,
    )  # fmt: skip
    logps = linear_logprob(
        hidden, weight, targets, rows=rows, bias=bias, lora=lora, softcap=softcap, temperature=temperature,
        tile_budget=tile_budget, keep_budget=keep_budget, backend=backend,
    )  # fmt: skip
    return preference_loss(logps, ref_logps, responses, pairs, backend=backend, **objective)
