"""Which response tokens differ from the other side, and what given character spans weigh.

Flags are kept with an example; what a changed token weighs (gamma) is decided when a pack is built.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmfast.ops.segments import changed_flags as differing

MODES = ("none", "clean", "compat", "record")


@dataclass(frozen=True, slots=True)
class SegmentRecipe:
    """A published weighting, whole: how segments are found, what they weigh, how a response is summed."""

    segments: str
    gamma: float
    average: bool
    beta: float


RECIPES = {
    "rlhfv_release": SegmentRecipe(segments="compat", gamma=1.1, average=False, beta=0.1),
    "rlhfv_paper": SegmentRecipe(segments="compat", gamma=5.0, average=True, beta=0.5),
}


def scored_positions(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.arange(a, b) for a, b in spans]) if spans else np.zeros(0, np.int64)


def changed_flags(
    mode: str,
    rejected: tuple[np.ndarray, Sequence[tuple[int, int]]],
    chosen: tuple[np.ndarray, Sequence[tuple[int, int]]],
    insertions: str = "ignore",
) -> tuple[np.ndarray, np.ndarray]:
    """One bool for each scored token of (rejected, chosen); a side is its ids and its scored spans.

    "clean" compares the scored tokens alone. "compat" is RLHF-V's: the whole sequence after its first token, image
    placeholders included, difflib's autojunk on; prompt positions that get flagged carry no loss and are left out here.
    """
    at = [scored_positions(spans) for _, spans in (rejected, chosen)]
    if mode == "clean":
        return differing(rejected[0][at[0]], chosen[0][at[1]], insertions=insertions)
    assert mode == "compat"
    if insertions != "ignore":
        raise ValueError("segments 'compat' ignores insertions and deletions; use 'clean' to count them")
    flags = differing(rejected[0][1:], chosen[0][1:], autojunk=True)
    return flags[0][at[0] - 1], flags[1][at[1] - 1]


def span_weights(
    offsets: np.ndarray, segments: Sequence[Sequence[float]], start: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Character spans to tokens: (changed flags, weights or None).

    offsets int[n, 2] are the tokens' characters; a segment: (first, end) or (first, end, weight), from `start`.
    A token that shares a character with a span is in it; where spans overlap the largest weight holds. A span without
    a weight marks its tokens as changed, one with a weight multiplies their log-probs by it.
    """
    changed = np.zeros(len(offsets), bool)
    weights = np.ones(len(offsets), np.float32)
    touched = np.zeros(len(offsets), bool)
    for segment in segments:
        first, end = start + segment[0], start + segment[1]
        inside = (offsets[:, 0] < end) & (offsets[:, 1] > first)
        if len(segment) < 3 or segment[2] is None:
            changed |= inside
        else:
            weights = np.where(inside, np.where(touched, np.maximum(weights, segment[2]), segment[2]), weights)
            touched |= inside
    return changed, weights.astype(np.float32) if touched.any() else None


def sentences(text: str) -> list[tuple[int, int]]:
    """[from, to) of each sentence: up to a full stop before a blank, or a Chinese or Japanese one anywhere."""
    pattern = r"[^.!?。！？\s][^.!?。！？]*(?:[.!?](?=\S)[^.!?。！？]*)*[.!?。！？]?"
    return [(m.start(), m.end()) for m in re.finditer(pattern, text)]


def claim_segments(
    answer: str, claims: Sequence[tuple[str, bool]], *, wrong: float, right: float = 1.0
) -> list[tuple[int, int, float]]:
    """Judgements of atomic claims (RLAIF-V, DGPref) to weighted spans of the answer they were taken from.

    A claim is reworded, so it is laid on the sentence that shares most words with it (the earliest on a tie). A
    sentence weighs `wrong` for its rejected share of claims and `right` for the rest; one without claims weighs 1.
    """
    laid = sentences(answer)
    words = [set(re.findall(r"\w+", answer[a:b].lower())) for a, b in laid]
    judged: dict[int, list[bool]] = {}
    for text, holds in claims:
        claim = set(re.findall(r"\w+", text.lower()))
        shared = [len(claim & w) for w in words]
        if shared and max(shared) > 0:
            judged.setdefault(shared.index(max(shared)), []).append(holds)
    out = []
    for k, verdicts in sorted(judged.items()):
        share = verdicts.count(False) / len(verdicts)
        out.append((*laid[k], wrong * share + right * (1 - share)))
    return out


def judged_segments(answer: str, claims: Sequence[Sequence], *, wrong: float) -> list[tuple[int, int, float]]:
    """Claims [text, holds(, span(, p))] to weighted spans. One that names its characters and does not hold weighs
    `wrong` there and nowhere else; those without characters of their own are laid on sentences, as claim_segments does.
    A claim that was not judged (holds is null) says nothing."""
    exact: list[tuple[int, int, float]] = []
    vague: list[tuple[str, bool]] = []
    for text, holds, *more in claims:
        span = more[0] if more else None
        if holds is None:
            continue
        if span is None:
            vague.append((str(text), bool(holds)))
        elif not holds:
            exact.append((*without_blanks(answer, *span), wrong))
    laid = claim_segments(answer, vague, wrong=wrong)
    return sorted(set(exact)) + [segment for segment in laid if not exact or segment[2] != 1.0]


def without_blanks(text: str, first: int, end: int) -> tuple[int, int]:
    """A span without the blanks at its ends: in most tokenizers they belong to the token of the next word."""
    said = text[first:end]
    return first + len(said) - len(said.lstrip()), end - len(said) + len(said.rstrip())
