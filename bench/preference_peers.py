"""The DPO loss of a batch as each peer of preference_loss computes it, from log-probs in the form that the peer takes.

TRL's loss lives inside DPOTrainer: "trl" is that method itself, on a stand-in for the trainer, with all metrics that it
logs; "trl: padded rows" is its loss and rewards alone. Liger's loss is a static method. Neither knows weights of
tokens: where a batch has some, they are multiplied into the log-probs first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfast.ops.preference import preference_loss

BETA = 0.1
Loss = Callable[[Tensor], Tensor]  # from log-probs, flat or padded


@dataclass(frozen=True)
class Batch:
    """Pairs of answers, the chosen first: flat for us and the eager loss, for the others a padded row an answer."""

    logps: Tensor  # [N]
    ref: Tensor
    weights: Tensor | None
    responses: Tensor  # [2P+1]
    pairs: Tensor  # [P,2]
    entry: Tensor  # [N], the answer of each token
    mask: Tensor  # [2P,L]

    @staticmethod
    def of(lengths: Sequence[int], weighted: bool, device: torch.device) -> Batch:
        g = torch.Generator().manual_seed(0)
        count, answers = sum(lengths), len(lengths)
        sizes = torch.tensor(lengths)
        logps, ref, weights = (torch.rand(count, generator=g) for _ in range(3))
        return Batch(
            logps=-logps.to(device),
            ref=-ref.to(device),
            weights=(weights + 0.5).to(device) if weighted else None,
            responses=F.pad(sizes.cumsum(0), (1, 0)).to(device, torch.int32),
            pairs=torch.arange(answers, device=device).view(2, -1).T.contiguous(),
            entry=torch.arange(answers).repeat_interleave(sizes).to(device),
            mask=(torch.arange(max(lengths)) < sizes[:, None]).to(device),
        )

    def padded(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)

    def flat(self, values: Tensor) -> Tensor:
        """The values of the tokens, of either form."""
        return values if values.ndim == 1 else values[self.mask]


def logged(s: Tensor, ratio: Tensor) -> None:
    """The metrics of a step, which no gradient needs."""
    with torch.no_grad():
        chosen, rejected = (BETA * ratio).chunk(2)
        _ = chosen - rejected, chosen > rejected, s.chunk(2)


def eager(batch: Batch) -> Loss:
    """What a careful user writes: two segment sums, a log-sigmoid, the metrics TRL logs."""

    def loss(logps: Tensor) -> Tensor:
        own, ref = logps, batch.ref
        if batch.weights is not None:
            own, ref = batch.weights * own, batch.weights * ref
        s = torch.zeros(len(batch.mask), dtype=own.dtype, device=own.device).index_add(0, batch.entry, own)
        ratio = s - torch.zeros_like(s).index_add(0, batch.entry, ref)
        sides = ratio[batch.pairs]
        logged(s, ratio)
        return -F.logsigmoid(BETA * (sides[:, 0] - sides[:, 1])).mean()

    return loss


def ours(batch: Batch) -> Loss:
    def loss(logps: Tensor) -> Tensor:
        out = preference_loss(logps, batch.ref, batch.responses, batch.pairs, weights=batch.weights, beta=BETA)
        return out.loss

    return loss


def sums(batch: Batch) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """What weighs padded log-probs, and the reference's padded log-probs."""
    ref = batch.padded(batch.ref)
    if batch.weights is None:
        return lambda values: values, ref
    weights = batch.padded(batch.weights)
    return lambda values: weights * values, ref


def padded_rows(batch: Batch) -> Loss:
    weigh, ref = sums(batch)

    def loss(logps: Tensor) -> Tensor:
        s = weigh(logps).sum(1)
        ratio = s - weigh(ref).sum(1)
        chosen, rejected = ratio.chunk(2)
        logged(s, ratio)
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss


@cache
def trl_method() -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    return DPOTrainer._compute_loss


def trl(batch: Batch) -> Loss:
    """DPOTrainer's method on one process. The model is a stand-in that has the log-probs ready; what else the fused
    head gives (entropy, mean logit, whether the target is the likeliest) means nothing, and is averaged all the same.
    """
    weigh, ref = sums(batch)
    statistic, answers = torch.zeros_like(ref), len(batch.mask)

    def gather(values: Tensor) -> Tensor:
        return values

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=ref.device, gather=gather, gather_for_metrics=gather),
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=BETA,
        ld_alpha=None,
        label_smoothing=0.0,
        use_weighting=False,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    whole = torch.cat([torch.zeros(answers, 1, dtype=torch.bool, device=ref.device), batch.mask], 1)
    fixed = {"input_ids": whole.long(), "attention_mask": whole.long(), "completion_mask": whole.long()}

    def loss(logps: Tensor) -> Tensor:
        chosen, rejected = weigh(ref).sum(1).chunk(2)
        outputs = SimpleNamespace(
            log_probs=weigh(logps), entropy=statistic, mean_logits=statistic, is_top1=batch.mask, log_sum_sq_probs=None
        )
        inputs = fixed | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        result: Tensor = trl_method()(trainer, lambda **_: outputs, inputs, False)
        return result

    return loss


@cache
def liger_method() -> Any:
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction

    return LigerFusedLinearDPOFunction.preference_loss_fn


def liger(batch: Batch) -> Loss:
    """From summed log-probs, as Liger's own head sums them: over padded rows, by a mask."""
    weigh, ref = sums(batch)
    targets = batch.mask.long()  # only its number of rows is looked at

    def loss(logps: Tensor) -> Tensor:
        chosen, rejected = (weigh(logps) * batch.mask).sum(1).chunk(2)
        ref_chosen, ref_rejected = (weigh(ref) * batch.mask).sum(1).chunk(2)
        result: Tensor = liger_method()(chosen, rejected, targets, ref_chosen, ref_rejected, beta=BETA)[0]
        return result

    return loss


def peers(batch: Batch) -> dict[str, tuple[Loss, Tensor]]:
    """Each one's loss, and the log-probs that it takes: a leaf."""
    flat, padded = batch.logps.clone().requires_grad_(), batch.padded(batch.logps).requires_grad_()
    return {
        "eager": (eager(batch), flat),
        "mmfast": (ours(batch), flat),
        "trl": (trl(batch), padded),
        "trl: padded rows": (padded_rows(batch), padded),
        "liger": (liger(batch), padded),
    }
