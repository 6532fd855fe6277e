"""A head some of whose tokens are masked by a bias of -inf, and its oracle: the same head without those columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops import linear_logprob
from mmfast.ops.oracles.logprob import linear_logprob as oracle
from tests.ops.logprob_cases import error
from tests.ops.places import generator

VOCAB = 700  # several tiles on every backend: at least 256 columns (folds), 128 (the fused kernel, 4 ranges)
MASKS = {
    "the first tiles": slice(0, 300),
    "a tile between": slice(256, 512),
    "the last tiles": slice(400, VOCAB),
    "all but a few": slice(5, 690),
    "every other": slice(0, VOCAB, 2),
    "all but the target": None,
}


def problems(mask: str, trained: bool, dtype: torch.dtype, **options: Any) -> list[str]:
    """What linear_logprob (options: backend, budgets, temperature) gets wrong under this mask."""
    g = generator(3)
    hidden = torch.randn(6, 16, generator=g, dtype=torch.float64).to(dtype)
    weight = (torch.randn(VOCAB, 16, generator=g, dtype=torch.float64) / 2).to(dtype)
    bias = torch.randn(VOCAB, generator=g)
    if mask == "all but the target":
        left = torch.tensor([399])
    else:
        left = torch.ones(VOCAB).index_fill(0, torch.arange(VOCAB)[MASKS[mask]], 0).nonzero()[:, 0]
    place = torch.randint(0, len(left), (6,), generator=g)
    bias = torch.full_like(bias, -torch.inf).index_copy(0, left, bias[left])
    names = ("hidden", "weight", "bias") if trained else ()
    given = {"hidden": hidden, "weight": weight, "bias": bias}
    ours = {k: t.clone().requires_grad_(k in names) for k, t in given.items()}
    got = linear_logprob(**ours, targets=left[place], tile_budget=1, **options)
    exact = {k: t.double().requires_grad_(k in names) for k, t in given.items()}
    kept = {"hidden": exact["hidden"], "weight": exact["weight"][left], "bias": exact["bias"][left]}
    want = oracle(**kept, targets=place, temperature=options.get("temperature", 1.0))["logp"]
    found = [] if (got - want).abs().max() < 1e-4 else [f"log-probs {got.tolist()}, not {want.tolist()}"]
    if names:
        c = torch.randn(6, generator=g)
        truth = torch.autograd.grad((want * c).sum(), [exact[n] for n in names])
        made = torch.autograd.grad((got * c).sum(), [ours[n] for n in names])
        for name, a, b in zip(names, made, truth, strict=True):
            if not distance(a, b) < (2e-2 if dtype == torch.bfloat16 else 1e-4):
                found.append(f"gradient of {name} is off by {distance(a, b)}")
    return found


def distance(a: Tensor, b: Tensor) -> float:
    return error(a, b) if b.abs().max() > 1e-6 else float((a - b).abs().max())
