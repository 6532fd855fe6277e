"""Verdicts on answers whose faults are known: which of two is better, and how good each is.

A request says as data what it is about (`About`), so that no wording of a prompt is read here, and how a verdict is
written for who asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from mmfast.engines.base import About


def prefer(about: About, faults: list[int], wrong: bool, rng: random.Random) -> int | None:
    """The number of the answer with fewer faults; None: neither. Where there is no such verdict, a coin decides."""
    if faults[0] == faults[1]:
        return None if about.more.get("ties") and not wrong else rng.randrange(2)
    return int(faults[1] < faults[0]) ^ wrong


def chances(about: About, faults: list[int], noise: float) -> dict[int | None, float]:
    """How probable `prefer` makes each verdict."""
    if faults[0] != faults[1]:
        better = int(faults[1] < faults[0])
        shares: dict[int | None, float] = {better: 1 - noise, 1 - better: noise}
        return shares | ({None: 0.0} if about.more.get("ties") else {})
    return {0: noise / 2, 1: noise / 2, None: 1 - noise} if about.more.get("ties") else {0: 0.5, 1: 0.5}


def rate(about: About, faults: list[int], wrong: bool, rng: random.Random) -> dict[str, Any]:
    """Each answer's number for every metric: the highest, less one a fault. A wrong judge turns the scale round."""
    low, high = about.more["low"], about.more["high"]
    right = [max(low, high - number) for number in faults]
    said = [low + high - number for number in right] if wrong else right
    scores = [dict.fromkeys(about.more["metrics"], number) for number in said]
    return {"scores": scores, "reasons": [f"{number} false" for number in faults]}


TASKS: dict[str, Callable[[About, list[int], bool, random.Random], Any]] = {"prefer": prefer, "rate": rate}
