"""reference.kind = "adapter-off": the reference is the LoRA base, run in each step in place of a cache.

A trained projector would drift away from it, so its starting values are kept and put back for the reference's forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast.models.parallelize import evaluating
from mmfast.models.scorer import Scorer
from mmfast.packing import Pack


class LiveReference:
    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        named = [(name, p) for name, p in scorer.named_parameters() if p.requires_grad and "lora_" not in name]
        self.trained = [p for _, p in named]
        self.starting: list[Tensor] = [p.detach().clone() for p in self.trained]

    def fill(self, pack: Pack) -> None:
        """Put the reference's log-probs into the pack."""
        current = [p.detach().clone() for p in self.trained]
        self._put(self.starting)
        with evaluating(self.scorer), self.scorer.peft[0].disable_adapter():
            logps = self.scorer(pack)
        self._put(current)
        pack.ref_logps = logps.float().index_select(0, pack.index)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for p, value in zip(self.trained, values, strict=True):
            p.copy_(value)
