"""What changed in the words: the phrases that a model says more often or less often than before, beside the truths.

A preference run may learn a phrase that marks the chosen texts, and no measure of objects shows it. So every report has
this table, and a phrase that the model has taken up and no truth contains is flagged.
"""

from __future__ import annotations

import html
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmfast import pages

LONGEST = 5  # words of a phrase
SURE = 3.0  # standard errors that a share must have moved


@dataclass(frozen=True, slots=True)
class Phrase:
    """Shares of texts that contain it."""

    text: str
    before: float
    after: float
    truths: float
    foreign: bool  # taken up, and too common now for the truths to lack it by chance


def changed(before: Sequence[str], after: Sequence[str], truths: Sequence[str] = (), number: int = 12) -> list[Phrase]:
    """The phrases of one to five words whose share moved most, foreign ones first. Of phrases within each other that
    moved alike the longest stands for all."""
    if not before or not after:
        return []
    said = [_share(texts) for texts in (before, after, truths)]
    size = min(len(before), len(after))
    moved = []
    for text in said[0].keys() | said[1].keys():
        old, new, true = (share[text] for share in said)
        mean = (old + new) / 2
        if abs(new - old) < SURE * (2 * mean * (1 - mean) / size) ** 0.5 or old == new:
            continue
        foreign = bool(truths) and true == 0 and new > old and (1 - new) ** len(truths) < 1e-3
        moved.append(Phrase(text, old, new, true, foreign))
    moved.sort(key=lambda p: (not p.foreign, -round(abs(p.after - p.before), 3), -len(p.text.split()), p.text))
    kept: list[Phrase] = []
    for phrase in moved:
        if len(kept) < number and not any(_alike(phrase, other) for other in kept):
            kept.append(phrase)
    return kept


def _share(texts: Sequence[str]) -> defaultdict[str, float]:
    """Share of the texts in which a phrase stands; 0 for any other."""
    texts_with = Counter(phrase for text in texts for phrase in _phrases(text))
    return defaultdict(float, {phrase: number / len(texts) for phrase, number in texts_with.items()})


def _phrases(text: str) -> set[str]:
    """The runs of words that no mark divides."""
    parts = [part.split() for part in re.split(r"[^\w\s'-]", text)]
    return {" ".join(w[i : i + n]) for w in parts for n in range(1, LONGEST + 1) for i in range(len(w) - n + 1)}


def _alike(a: Phrase, b: Phrase) -> bool:
    """One within the other, or their ends overlapping, and moved the same way and about as far."""
    moves = sorted((a.after - a.before, b.after - b.before), key=abs)
    if a.foreign != b.foreign or moves[0] * moves[1] <= 0 or abs(moves[0]) < 0.7 * abs(moves[1]):
        return False
    short, long = sorted((f" {p.text} " for p in (a, b)), key=len)
    if short in long:
        return True
    x, y = a.text.split(), b.text.split()
    return any(x[-k:] == y[:k] or y[-k:] == x[:k] for k in range(1, min(len(x), len(y)) + 1))


def as_html(
    phrases: Sequence[Phrase], heading: str, before: str = "before", after: str = "after", *, truths: bool = True
) -> str:
    """A table for a report; `truths`: whether there were any."""
    if not phrases:
        return f"<h3>{html.escape(heading)}</h3><p>No phrase's share moved by more than chance.</p>"
    rows = []
    for p in phrases:
        text = f"<mark>{html.escape(p.text)}</mark>" if p.foreign else html.escape(p.text)
        shares = [f"{100 * share:.1f}%" for share in (p.before, p.after, p.truths)]
        row = [text, *shares, "no truth says it" if p.foreign else ""]
        rows.append(row if truths else row[:3])
    headings = ("phrase", before, after, "truths", "")[: 5 if truths else 3]
    return f"<h3>{html.escape(heading)}</h3>{pages.table(headings, rows)}"
