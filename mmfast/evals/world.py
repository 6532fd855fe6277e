"""How much a model hallucinates: its greedy captions of held-out pictures, judged exactly by the annotation.

CHAIR_i  share of mentioned objects that are not in the picture (an object is a coloured shape; once a caption)
CHAIR_s  share of captions that mention such an object
recall   share of the objects in the pictures that are mentioned
claims   (wrong, claimed) of each kind of claim, as grammar.judged counts them
A lower CHAIR is worth nothing if the model has merely learnt to say less: recall and length stand beside it, and wrong
claims beside how many were made. Reward accuracy on held-out pairs is no such judge: it can reach 95% while as many
objects are invented as before (docs/benchmarks.md). Intervals are 95% percentiles of a bootstrap over the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.pages import png
from mmfast.world.grammar import CAPTION_PROMPTS, CLAIMS, claims, judged
from mmfast.world.scenes import Scene, render

SHARES = {  # name: (column of the numerator, of the denominator)
    "chair_i": ("absent", "mentioned"),
    "chair_s": ("inventive", "captions"),
    "recall": ("recalled", "present"),
    "words": ("length", "captions"),
}
RATES = SHARES | {name: (f"{name}:wrong", f"{name}:claimed") for name in CLAIMS}  # and how often each claim is wrong
TALLY = (
    *("captions", "mentioned", "absent", "inventive", "recalled", "present", "length"),
    *(f"{name}:{part}" for name in CLAIMS for part in ("wrong", "claimed")),
)
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Score:
    chair_i: float
    chair_s: float
    recall: float
    words: float  # mean length of a caption
    claims: dict[str, tuple[int, int]]  # (wrong, claimed)
    captions: int
    intervals: dict[str, tuple[float, float]]  # of the four shares
    counted: np.ndarray = field(repr=False, compare=False)  # [captions, columns]: what each caption adds

    def as_dict(self) -> dict[str, Any]:
        """Without what each caption adds; JSON can hold it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}


def tally(text: str, scene: Scene) -> list[int]:
    """What a caption adds to each column of TALLY."""
    kinds = set(claims(text).kinds)
    absent = len(kinds - scene.kinds)
    shares = [1, len(kinds), absent, bool(absent), len(kinds & scene.kinds), len(scene.kinds), len(text.split())]
    return [*shares, *(n for pair in judged(text, scene).values() for n in pair)]


@lru_cache(maxsize=1)
def _weights(pictures: int) -> np.ndarray:
    """How often each picture is drawn in every resample, the same for every model."""
    return np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), RESAMPLES)


def _resampled(counted: np.ndarray) -> dict[str, np.ndarray]:
    """Each rate in every resample of the pictures."""
    return _rates(_weights(len(counted)) @ counted)


def _rates(sums: np.ndarray) -> dict[str, np.ndarray]:
    at = {name: sums[..., k] for k, name in enumerate(TALLY)}
    return {name: at[above] / np.maximum(at[below], 1) for name, (above, below) in RATES.items()}


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def score(captions: Sequence[str], scenes: Sequence[Scene]) -> Score:
    if len(captions) != len(scenes) or not captions:
        raise ValueError(f"{len(captions)} captions for {len(scenes)} scenes: they must match, and not be empty")
    return of_counted(np.array([tally(text, scene) for text, scene in zip(captions, scenes, strict=True)]))


def of_counted(counted: np.ndarray) -> Score:
    """The score of captions of which each row says what one of them adds to TALLY."""
    sums = counted.sum(0)
    rates, resampled = _rates(sums), _resampled(counted)
    pairs = sums[len(TALLY) - 2 * len(CLAIMS) :].reshape(-1, 2).tolist()
    return Score(
        **{name: float(rates[name]) for name in SHARES},
        claims={name: (wrong, claimed) for name, (wrong, claimed) in zip(CLAIMS, pairs, strict=True)},
        captions=len(counted),
        intervals={name: _interval(resampled[name]) for name in SHARES},
        counted=counted,
    )


def change(before: Score, after: Score, share: str = "chair_s") -> tuple[float, float, float]:
    """(after - before, and its 95% interval), the same pictures compared."""
    return changes(before, after)[share]


def changes(before: Score, after: Score) -> dict[str, tuple[float, float, float]]:
    """`change` of each of RATES: the shares, and how often each kind of claim is wrong."""
    old, new = (_rates(one.counted.sum(0)) for one in (before, after))
    drawn = [_resampled(one.counted) for one in (before, after)]
    return {name: (float(new[name] - old[name]), *_interval(drawn[1][name] - drawn[0][name])) for name in RATES}


def greedy_captions(
    model: str | Path,
    scenes: Sequence[Scene],
    *,
    prompt: str = CAPTION_PROMPTS[0],
    max_tokens: int = 96,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Of a model's directory, by the local engine."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    asked = [
        Request(
            key=str(number),
            messages=({"role": "user", "content": content},),
            images=(Picture(scene.name, png(render(scene))),),
            decode=Decode(max_tokens=max_tokens),
        )
        for number, scene in enumerate(scenes)
    ]
    texts = [""] * len(asked)
    for done, reply in enumerate(Local(str(model), device=device).answer(asked), 1):
        assert not reply.error, reply.error
        texts[int(reply.key)] = reply.text
        if progress:
            progress(done, len(asked))
    return texts
