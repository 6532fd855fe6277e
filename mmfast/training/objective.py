"""What is minimised: names -> (loss kind, weights, normaliser), and the numbers told about it.

A pack's loss is its share of the step's: sums over the pack divided by the step's global count (`Pack.normaliser`), so
that nothing depends on packing, micro-batches or world size. Metrics are sums on the device; `averages` divides them
after one reduction at a log step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmfast.config import Config, Objective
from mmfast.ops.kinds import DIVERGING, REFERENCE_FREE, SMOOTHED, SORTING
from mmfast.ops.preference import preference_loss
from mmfast.ops.preference_math import make_spec
from mmfast.packing.pack import Pack

PAIR_SUMS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "pairs",
)
SFT_SUMS = ("loss", "nll", "tokens")


@dataclass(frozen=True)
class Minimised:
    """One objective of one run. `count`: which names its metric sums have."""

    spec: Objective
    reference: bool  # whether packs carry reference log-probs

    @property
    def names(self) -> tuple[str, ...]:
        return SFT_SUMS if self.spec.kind == "sft" else PAIR_SUMS

    @property
    def whole_step(self) -> bool:
        return self.spec.kind == "dpo" and any(name in SORTING for name, _ in self.losses())

    def losses(self) -> list[tuple[str, float]]:
        return [(self.spec.loss, 1.0), *((term.loss, term.weight) for term in self.spec.terms)]

    def __call__(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """(the pack's share of the step's loss, metric sums float64[len(names)] on the device)."""
        if self.spec.kind == "sft":
            return self._sft(logps, pack)
        return self._pairs(logps, pack)

    def _sft(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        weighted = (logps.index_select(0, pack.index) * pack.weights).sum()
        loss = -weighted / pack.normaliser
        with torch.no_grad():
            sums = torch.stack([loss.double(), -weighted.double(), pack.weights.sum(dtype=torch.float64)])
        return loss, sums

    def _pairs(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        spec = self.spec
        ref = self.reference_logps(pack)
        total, main = None, None
        for number, (name, weight) in enumerate(self.losses()):
            out = preference_loss(
                logps,
                None if name in REFERENCE_FREE else ref,
                pack.responses,
                pack.pairs,
                index=pack.index,
                weights=pack.weights,
                loss=name,
                pair_weights=pack.pair_weights,
                pair_count=pack.normaliser,
                **self._settings(name, number == 0),
            )
            main = main or out
            total = out.loss if total is None else total + weight * out.loss
        assert total is not None and main is not None
        with torch.no_grad():
            columns = torch.stack(
                [
                    main.chosen_rewards,
                    main.rejected_rewards,
                    (main.chosen_rewards > main.rejected_rewards).to(main.chosen_rewards.dtype),
                    main.chosen_rewards - main.rejected_rewards,
                    main.chosen_logps,
                    main.rejected_logps,
                    torch.ones_like(main.chosen_rewards),
                ]
            )
            sums = torch.cat([total.detach().double().reshape(1), columns.sum(1, dtype=torch.float64)])
        assert spec.kind == "dpo"
        return total, sums

    def _settings(self, name: str, first: bool) -> dict[str, Any]:
        """Arguments of preference_loss; what only some losses know goes to those."""
        s = self.spec
        given: dict[str, Any] = {"beta": s.beta, "average": s.average}
        if name in SMOOTHED:
            given["label_smoothing"] = s.label_smoothing
        if first and s.sft_weight:
            given |= {"sft_weight": s.sft_weight, "sft_average": s.sft_average}
        if s.divergence and (first or name in DIVERGING):
            given |= {"f_divergence": s.divergence, "f_alpha": s.alpha}
        if s.ld_alpha != 1.0:
            given["ld_alpha"] = s.ld_alpha
        if name == "discopop" or (first and s.tau is not None and not self._has("discopop")):
            given["tau"] = s.tau
        if name == "simpo" or (first and s.simpo_margin is not None and not self._has("simpo")):
            given["simpo_margin"] = s.simpo_margin
        return given

    def _has(self, loss: str) -> bool:
        return any(name == loss for name, _ in self.losses())

    def check(self) -> None:
        """Raise what preference_loss would refuse, before anything is loaded."""
        if self.spec.kind == "dpo":
            for number, (name, _) in enumerate(self.losses()):
                reads = self.reference and name not in REFERENCE_FREE
                make_spec(name, has_reference=reads, op="objective", **self._settings(name, number == 0))

    def reference_logps(self, pack: Pack) -> Tensor | None:
        """What the loss reads as the reference. DGPref's released code takes the mean where the policy is summed (and
        the sum where it is averaged): "dgpref" scales each response's values so that its aggregate is that one."""
        if not self.reference:
            return None
        ref = pack.ref_logps
        assert ref is not None, "the plan made a pack without reference log-probs"
        if self.spec.compat != "dgpref":
            return ref
        lengths = pack.responses.diff()
        scale = lengths.to(ref.dtype) if self.spec.average else lengths.to(ref.dtype).reciprocal()
        return ref * torch.repeat_interleave(scale, lengths, output_size=len(ref))

    def at_zero_margin(self, pack: Pack) -> float | None:
        """The pack's loss if the policy were the reference: what a fresh run must start from. None: no such value."""
        if self.spec.kind == "sft" or not self.reference or self.spec.compat:
            return None
        assert pack.ref_logps is not None
        logps = torch.zeros(len(pack.targets), dtype=pack.ref_logps.dtype, device=pack.ref_logps.device)
        logps[pack.index] = pack.ref_logps
        with torch.no_grad():
            return float(self(logps, replace(pack))[0])

    def averages(self, sums: list[float], steps: int) -> dict[str, float]:
        """Metric names -> values, from sums over all ranks and `steps` optimiser steps."""
        found = dict(zip(self.names, sums, strict=True))
        loss = found.pop("loss") / max(steps, 1)  # each step's shares already add up to its mean
        if self.spec.kind == "sft":
            return {"loss": loss, "nll": found["nll"] / max(found["tokens"], 1e-9)}
        count = found.pop("pairs")
        return {"loss": loss, **{name: value / max(count, 1.0) for name, value in found.items()}}


def objective_of(config: Config) -> Minimised:
    return Minimised(config.objective, config.objective.kind == "dpo" and config.reference.kind != "none")
