"""Plain oracles: every op as its formula, with full logits and autograd. Slow, and easy to believe."""

from __future__ import annotations

import torch
from torch import Tensor


def map_logits(logits: Tensor, softcap: float | None = None, temperature: float = 1.0) -> Tensor:
    """Maps z to softcap * tanh(z / softcap), then / temperature."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def logprob_outputs(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Makes everything linear_logprob can return, from mapped logits [U,V]."""
    logp = torch.log_softmax(logits, dim=-1)
    p = logp.exp()
    return {
        "logp": logp.gather(-1, targets[:, None])[:, 0],
        "entropy": -torch.where(p > 0, p * logp, 0.0).sum(-1),
        "logsumsq": torch.logsumexp(2 * logp, dim=-1).detach(),
        "mean_logit": logits.mean(-1).detach(),
        "top1": (logits.gather(-1, targets[:, None]) >= logits.amax(-1, keepdim=True))[:, 0],
    }


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Makes log softmax(map(hidden[rows] W^T + u B^T + bias))[target] in `dtype`; gradients reach the inputs."""
    x = hidden if rows is None else hidden[rows]
    logits = x.to(dtype) @ weight.to(dtype).T
    if lora is not None:
        u, b = lora
        logits = logits + (u if rows is None else u[rows]).to(dtype) @ b.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    return logprob_outputs(map_logits(logits, softcap, temperature), targets)


def selective_logprob(
    logits: Tensor, targets: Tensor, *, softcap: float | None = None, temperature: float = 1.0
) -> dict[str, Tensor]:
    return logprob_outputs(map_logits(logits.double(), softcap, temperature), targets)
