"""Beam search: transformers' (early_stopping = false), step by step. A beam is a row whose ancestors change.

Several candidates are kept a step, so that enough go on where some end. An ended one counts only among the best; the
search stops when no running beam can beat the worst that ended, judged at the present length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmfast.engines.base import Decode, Finish
from mmfast.engines.prefill import Prefilled
from mmfast.engines.sampling import penalised


@dataclass(eq=False)
class Beam:
    of: Prefilled
    search: Beams
    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    score: float = 0.0
    logp: float = 0.0  # without penalties
    finish: Finish = "length"


class Beams:
    def __init__(
        self, of: Prefilled, decode: Decode, most: int, ends: int, stops: Callable[[list[int]], Finish | None]
    ) -> None:
        """`ends`: how many end tokens there are; `most`: tokens of an answer."""
        self.decode, self.most, self.stops = decode, most, stops
        self.kept = max(2, 1 + ends) * decode.beams
        self.shown = of.prompt.ids
        self.running = [Beam(of, self)]
        self.ended: list[tuple[float, Beam]] = []  # (score by length, beam), the best first

    def advance(self, logits: Tensor) -> list[tuple[int, Beam]]:
        """(parent's number, beam) of each that goes on; none when the search is over. fp32 logits [running,V]."""
        # Candidates: the best continuations of all beams
        raw = logits.log_softmax(-1)
        scores = raw
        if (penalty := self.decode.repetition_penalty) != 1:
            seen = [[*self.shown, *beam.tokens] for beam in self.running]
            scores = torch.stack([penalised(row, ids, penalty) for row, ids in zip(raw, seen, strict=True)])
        total = scores + torch.tensor([beam.score for beam in self.running], device=raw.device)[:, None]
        best = total.flatten().topk(min(self.kept, total.numel()))
        candidates: list[tuple[int, Beam]] = []
        vocabulary = raw.shape[1]
        logps = raw.flatten()[best.indices].tolist()
        for score, index, logp in zip(best.values.tolist(), best.indices.tolist(), logps, strict=True):
            parent = self.running[index // vocabulary]
            tokens = [*parent.tokens, index % vocabulary]
            beam = Beam(parent.of, self, tokens, [*parent.pages], score, parent.logp + logp)
            candidates.append((index // vocabulary, beam))
        # Which end, and which go on
        length, going = len(candidates[0][1].tokens), []
        for place, (parent_number, beam) in enumerate(candidates):
            finish = self.stops(beam.tokens)
            if finish is None and length < self.most:
                going.append((parent_number, beam))
            elif place < self.decode.beams:
                beam.finish = finish or "length"
                self.ended.append((beam.score / length**self.decode.length_penalty, beam))
        self.ended = sorted(self.ended, key=lambda one: -one[0])[: self.decode.beams]
        going = going[: self.decode.beams]
        self.running = [beam for _, beam in going]
        full = len(self.ended) == self.decode.beams
        if not going or (full and going[0][1].score / length**self.decode.length_penalty <= self.ended[-1][0]):
            self.running = []
            return []
        return going

    @property
    def best(self) -> Beam:
        return self.ended[0][1]


def inherit(going: Sequence[tuple[int, Beam]], page: int, copy: Callable[[int], int]) -> None:
    """Every beam has its parent's pages. A last page that is not full is one beam's alone: the others get copies."""
    owned: set[int] = set()
    for _, beam in going:
        if not beam.pages or (len(beam.tokens) - 1) % page == 0:
            continue
        if beam.pages[-1] in owned:
            beam.pages[-1] = copy(beam.pages[-1])
        owned.add(beam.pages[-1])
