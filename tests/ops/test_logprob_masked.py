"""Biases of -inf (masked tokens): whole tiles of them, all but the target, on every path, with gradients."""

from __future__ import annotations

import pytest
import torch

from mmfast.ops import linear_logprob, selective_logprob
from tests.ops.logprob_masked import MASKS, problems

PATHS = {"direct": {}, "kept": {}, "recompute": {"keep_budget": 0}, "tempered": {"temperature": 0.6}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mask", MASKS)
def test_masked_tokens_are_as_good_as_absent(mask: str, path: str, dtype: torch.dtype, backend: str) -> None:
    assert not problems(mask, path != "direct", dtype, backend=backend, **PATHS[path])


def test_a_masked_target_has_probability_0(backend: str) -> None:
    hidden, weight = torch.randn(2, 4), torch.randn(600, 4)
    bias = torch.zeros(600)
    bias[:300] = -torch.inf
    logp, entropy = linear_logprob(
        hidden, weight, torch.tensor([7, 400]), bias=bias, return_entropy=True, tile_budget=1, backend=backend
    )
    assert logp[0] == -torch.inf and logp[1].isfinite() and entropy.isfinite().all()


def test_masked_logits(backend: str) -> None:
    logits = torch.randn(3, 50)
    logits[:, :30] = -torch.inf
    logits.requires_grad_()
    targets = torch.tensor([30, 40, 49])
    logp = selective_logprob(logits, targets, backend=backend)
    want = torch.log_softmax(logits[:, 30:].double(), -1).gather(1, targets[:, None] - 30)[:, 0]
    assert (logp - want).abs().max() < 1e-5
    (grad,), (truth,) = (torch.autograd.grad(x.sum(), logits) for x in (logp, want))
    assert (grad - truth).abs().max() < 1e-5
