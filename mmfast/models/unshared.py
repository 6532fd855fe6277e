"""Scoring without sharing: every path of a pack runs alone through the unpatched model, with the model's own masks.

Slow, and right for any model that reads its images through embeddings: the way of models that refused sharing.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmfast.families.base import Adapter
from mmfast.packing.pack import Pack


def score_unshared(
    model: PreTrainedModel, adapter: Adapter, inputs: Tensor, pack: Pack, return_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Each run's keys are the tokens of its whole path, embedded in `inputs`; its own rows are read off its end."""
    accepted = inspect.signature(type(model.base_model).forward).parameters
    q_offsets, k_offsets = pack.q_offsets.tolist(), pack.k_offsets.tolist()
    order, logits = [], [inputs.new_zeros(0, adapter.text_config.vocab_size) + 0 * inputs.sum()]
    for m in range(len(q_offsets) - 1):
        path = pack.k_index[k_offsets[m] : k_offsets[m + 1]]
        own = torch.nonzero((pack.rows >= q_offsets[m]) & (pack.rows < q_offsets[m + 1])).flatten()
        order.append(own)
        keep = pack.rows[own] - q_offsets[m + 1] + len(path)
        positions = pack.positions[path][None] if pack.positions.dim() == 1 else pack.positions[:, None, path]
        extra = {n: t for n, t in adapter.plain_inputs(pack.tokens[path][None]).items() if n in accepted}
        output = model(
            inputs_embeds=inputs[path][None], position_ids=positions, use_cache=False, logits_to_keep=keep, **extra
        )
        logits.append(output.logits[0])
    where = torch.cat([*order, pack.rows.new_zeros(0)]).argsort()
    rows = torch.cat(logits)[where]
    targets = pack.targets
    if pack.runner_up is not None:
        others = rows[pack.runner_up]
        targets = torch.cat([targets, likeliest_other(others.detach(), targets[pack.runner_up])])
        rows = torch.cat([rows, others])
    logps = plain_logprob(rows, targets)
    if not return_entropy:
        return logps
    every = rows.detach().float().log_softmax(-1)
    return logps, -(every.exp() * every).sum(-1)


def likeliest_other(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [W,V] -> the token of the largest logit that is not the target, int64 [W]."""
    return logits.scatter(1, targets[:, None], -torch.inf).argmax(1)


def plain_logprob(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [U,V] -> logp [U], fp32."""
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
