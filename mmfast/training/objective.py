"""What is minimised, one class an objective, and the numbers told about it.

A pack's loss is its share of the step's: sums over the pack divided by the step's global count (`Pack.normaliser`), so
that nothing depends on packing, micro-batches or world size. Metrics are sums on the device; `averages` divides them
after one reduction at a log step. An objective of one's own derives from Objective and is given to `train`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mmfast.config import schema
from mmfast.ops.kinds import DIVERGING, REFERENCE_FREE, SMOOTHED
from mmfast.ops.preference import preference_loss
from mmfast.ops.preference_math import make_spec
from mmfast.packing.pack import Pack


class Objective:
    names: ClassVar[tuple[str, ...]] = ("loss",)  # of the metric sums; "loss" comes first
    reads_reference = False  # whether packs must carry reference log-probs

    def __call__(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """(the pack's share of the step's loss, metric sums float64[len(names)] on the device)."""
        raise NotImplementedError

    def averages(self, sums: list[float], steps: int) -> dict[str, float]:
        """Metric names -> values, from sums over all ranks and `steps` optimiser steps, whose shares already add up to
        each step's mean."""
        return {name: value / max(steps, 1) for name, value in zip(self.names, sums, strict=True)}

    def at_zero_margin(self, pack: Pack) -> float | None:
        """The pack's loss if the policy were the reference: what a fresh run must start from. None: no such value."""
        return None


class Sft(Objective):
    """Cross entropy of the responses; each token counts by its weight."""

    names = ("loss", "nll", "tokens")

    def __call__(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        weighted = (logps.index_select(0, pack.index) * pack.weights).sum()
        loss = -weighted / pack.normaliser
        with torch.no_grad():
            sums = torch.stack([loss.double(), -weighted.double(), pack.weights.sum(dtype=torch.float64)])
        return loss, sums

    def averages(self, sums: list[float], steps: int) -> dict[str, float]:
        loss, nll, tokens = sums
        return {"loss": loss / max(steps, 1), "nll": nll / max(tokens, 1e-9)}


class Pairs(Objective):
    """A preference loss over pairs, and further ones as weighted terms."""

    names = (
        *("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
        *("logps/chosen", "logps/rejected", "pairs"),
    )

    def __init__(self, spec: schema.Objective, *, reads_reference: bool) -> None:
        """Raises what preference_loss would refuse."""
        self.spec, self.reads_reference, self.losses = spec, reads_reference, spec.losses()
        self.options = [self._options(name, main=number == 0) for number, (name, _) in enumerate(self.losses)]
        for (name, _), options in zip(self.losses, self.options, strict=True):
            make_spec(name, has_reference=reads_reference and name not in REFERENCE_FREE, op="objective", **options)

    def _options(self, name: str, *, main: bool) -> dict[str, Any]:
        """Arguments of preference_loss; what only some losses know goes to those."""
        s, names = self.spec, [name for name, _ in self.losses]
        options: dict[str, Any] = {"beta": s.beta, "average": s.average}
        if name in SMOOTHED:
            options["label_smoothing"] = s.label_smoothing
        if main and s.sft_weight:
            options |= {"sft_weight": s.sft_weight, "sft_average": s.sft_average}
        if s.divergence and (main or name in DIVERGING):
            options |= {"f_divergence": s.divergence, "f_alpha": s.alpha}
        if s.ld_alpha != 1.0:
            options["ld_alpha"] = s.ld_alpha
        if name == "discopop" or (main and s.tau is not None and "discopop" not in names):
            options["tau"] = s.tau
        if name == "simpo" or (main and s.simpo_margin is not None and "simpo" not in names):
            options["simpo_margin"] = s.simpo_margin
        return options

    def __call__(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        reference = self._reference_logps(pack)
        outputs = [
            preference_loss(
                logps,
                None if name in REFERENCE_FREE else reference,
                pack.responses,
                pack.pairs,
                index=pack.index,
                index_copies=pack.index_copies,
                index_offsets=pack.index_offsets,
                weights=pack.weights,
                loss=name,
                pair_weights=pack.pair_weights,
                pair_count=pack.normaliser,
                **options,
            )
            for (name, _), options in zip(self.losses, self.options, strict=True)
        ]
        # The sum of all, and metrics of the first
        main = outputs[0]
        total = main.loss
        for (_, weight), output in zip(self.losses[1:], outputs[1:], strict=True):
            total = total + weight * output.loss
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
        return total, sums

    def averages(self, sums: list[float], steps: int) -> dict[str, float]:
        loss, *others, count = sums
        means = {name: value / max(count, 1.0) for name, value in zip(self.names[1:-1], others, strict=True)}
        return {"loss": loss / max(steps, 1), **means}

    def at_zero_margin(self, pack: Pack) -> float | None:
        if not self.reads_reference or self.spec.compat == "dgpref":
            return None
        assert pack.ref_logps is not None
        scored = len(pack.targets) + (0 if pack.runner_up is None else len(pack.runner_up))
        logps = torch.zeros(scored, dtype=pack.ref_logps.dtype, device=pack.ref_logps.device)
        logps[pack.index] = pack.ref_logps
        with torch.no_grad():
            return float(self(logps, pack)[0])

    def _reference_logps(self, pack: Pack) -> Tensor | None:
        """What the loss reads as the reference. DGPref's released code takes the mean where the policy is summed (and
        the sum where it is averaged): "dgpref" scales each response's values so that its aggregate is that one."""
        if not self.reads_reference:
            return None
        reference = pack.ref_logps
        assert reference is not None, "the plan made a pack without reference log-probs"
        if self.spec.compat != "dgpref":
            return reference
        lengths = pack.responses.diff()
        scale = lengths.to(reference.dtype) if self.spec.average else lengths.to(reference.dtype).reciprocal()
        return reference * torch.repeat_interleave(scale, lengths, output_size=len(reference))


def objective_of(config: schema.Config) -> Objective:
    if config.objective.kind == "sft":
        return Sft()
    return Pairs(config.objective, reads_reference=config.reference.kind != "none")
