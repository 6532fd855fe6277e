"""How far people agree who did the same cards: verdicts, segments, kinds, ratings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]


def agreement(rows: Iterable[Row]) -> dict[str, Any]:
    """Over every two people and every card that both did; empty where no card was done twice.

    cards           done by more than one person
    pairs           of people's works on one card
    equal_verdicts  share of pairs with the same verdict: wrong or right (anything marked or not); a, b or tie
    kappa           Cohen's, of these verdicts over all pairs, both orders counted; null where chance always agrees
    segment_f1      2 x segments that overlap, one to one / all segments of both; null where nobody marked any
    character_f1    the same of marked characters
    equal_kinds     share of overlapping segments with the same kind
    scores          of each metric: share of equal ratings, and the mean distance
    """
    cards: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        cards[row["key"].rpartition(f".{row['annotator']}")[0]].append(row)
    pairs = [two for some in cards.values() for two in combinations(some, 2)]
    if not pairs:
        return {}
    out: dict[str, Any] = {"cards": sum(len(some) > 1 for some in cards.values()), "pairs": len(pairs)}
    if "scores" in pairs[0][0]:
        return out | {"scores": _scores(pairs)}
    verdicts = [(_verdict(a), _verdict(b)) for a, b in pairs]
    out |= {"equal_verdicts": sum(a == b for a, b in verdicts) / len(pairs), "kappa": kappa(verdicts)}
    if "segments" in pairs[0][0]:
        out |= segment_agreement((a["segments"], b["segments"]) for a, b in pairs)
    return out


def _verdict(row: Row) -> str:
    if "verdict" in row:
        return row["verdict"]
    return "wrong" if row["segments"] else "right"


def kappa(verdicts: Sequence[tuple[str, str]]) -> float | None:
    """Who is first of two people has no meaning, so each pair counts in both orders."""
    share = Counter(verdict for pair in verdicts for verdict in pair)
    total = 2 * len(verdicts)
    chance = sum((number / total) ** 2 for number in share.values())
    equal = sum(a == b for a, b in verdicts) / len(verdicts)
    return None if chance == 1 else (equal - chance) / (1 - chance)


def segment_agreement(pairs: Iterable[tuple[list[Row], list[Row]]]) -> dict[str, Any]:
    met = same = segments = characters = shared = 0
    for a, b in pairs:
        matched = overlapping(a, b)
        met += len(matched)
        same += sum(one["kind"] == other["kind"] for one, other in matched)
        segments += len(a) + len(b)
        marked = [{n for one in side for n in range(*one["span"])} for side in (a, b)]
        characters += len(marked[0]) + len(marked[1])
        shared += len(marked[0] & marked[1])
    return {
        "segment_f1": 2 * met / segments if segments else None,
        "character_f1": 2 * shared / characters if characters else None,
        "equal_kinds": same / met if met else None,
    }


def overlapping(a: list[Row], b: list[Row]) -> list[tuple[Row, Row]]:
    """As many segments as can be matched one to one with one that they overlap. Segments of one side do not overlap, so
    taking from the left the two that end first is the most."""
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        (first, end), (other, last) = a[i]["span"], b[j]["span"]
        if (first < last and other < end) or (first, end) == (other, last):  # words added at one place are alike
            out.append((a[i], b[j]))
            i, j = i + 1, j + 1
        elif end <= other:
            i += 1
        else:
            j += 1
    return out


def _scores(pairs: Sequence[tuple[Row, Row]]) -> dict[str, dict[str, float]]:
    out = {}
    for metric in pairs[0][0]["scores"]:
        distances = [abs(a["scores"][metric] - b["scores"][metric]) for a, b in pairs]
        out[metric] = {
            "equal": sum(d == 0 for d in distances) / len(pairs),
            "mean_distance": sum(distances) / len(pairs),
        }
    return out
