"""What boxes say: is a thing there, how many, how large, and where it stands to another. Right, and to DGPref's letter.

compat, where DGPref's code differs: an object is there if its singular is, where that was looked for too; "near" is
near in one direction, "top" takes the lower one, "bottom" never holds, "short" is small in both directions. Its
detector counts boxes that lie on each other each (Owl's `overlap`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np

from mmfast.engines.base import Picture
from mmfast.feedback.expert_scores import NUMBERS, WHOLE_IMAGE, singulars
from mmfast.feedback.experts import FALSE, OPEN, TRUE, UNSEEN, Case, Verdict, names_of
from mmfast.feedback.items import Item

COUNTED = {**NUMBERS, "one": 1}
HELD = 1024  # images whose boxes are kept: several experts look at the images of one window
EDGES = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Box:
    """In pixels, from the left upper corner."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float = 1.0

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @classmethod
    def of(cls, corners: Sequence[float], score: float) -> Box:
        x0, y0, x1, y1 = corners
        return cls(x0, y0, x1, y1, score)

    def row(self) -> list[float]:
        return [round(float(getattr(self, edge)), 1) for edge in EDGES]


@dataclass(frozen=True)
class Found:
    width: float
    height: float
    boxes: dict[str, tuple[Box, ...]]
    notes: dict[str, str] = field(default_factory=dict)  # what is to be said of a name


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Shares of the image; DGPref's numbers."""

    large_width: float = 0.4
    large_height: float = 0.4
    small_width: float = 0.3
    small_height: float = 0.3
    long: float = 0.5
    short: float = 0.3
    tall: float = 0.4
    near: float = 0.1
    compat: bool = False


def suppressed(boxes: Sequence[Box], overlap: float) -> tuple[Box, ...]:
    """Without boxes that share more than `overlap` (intersection over union) with a better one; 1 keeps all."""
    if overlap >= 1 or len(boxes) < 2:
        return tuple(boxes)
    ordered = sorted(boxes, key=lambda box: -box.score)
    corners = np.asarray([[box.x0, box.y0, box.x1, box.y1] for box in ordered], np.float64)
    areas = (corners[:, 2] - corners[:, 0]).clip(0) * (corners[:, 3] - corners[:, 1]).clip(0)
    kept: list[int] = []
    for n, corner in enumerate(corners):
        inner = np.minimum(corner[2:], corners[kept, 2:]) - np.maximum(corner[:2], corners[kept, :2])
        shared = inner.clip(0).prod(1)
        if not (shared > overlap * (areas[n] + areas[kept] - shared)).any():
            kept.append(n)
    return tuple(ordered[n] for n in kept)


def judged(
    item: Item,
    found: Found,
    sizes: Sizes,
    whole: frozenset[str] = WHOLE_IMAGE,
    singular: Callable[[str], str] = lambda name: name,
) -> Verdict:
    """An item's verdict by the boxes of what it names. `singular`: of an object's name, whose boxes are taken where the
    singular was looked for too (DGPref)."""
    # The boxes of what it names
    named = names_of(item, whole)
    if item.kind == "object" and singular(named[0]) in found.boxes:
        named = (singular(named[0]),)
    boxes = {name: found.boxes.get(name, ()) for name in named}
    evidence: dict[str, Any] = {"boxes": {name: [box.row() for box in some] for name, some in boxes.items()}}
    evidence["scores"] = {name: [round(float(box.score), 4) for box in some] for name, some in boxes.items()}
    evidence |= {"notes": notes} if (notes := {n: found.notes[n] for n in named if n in found.notes}) else {}
    # There, or not; and what else is said of it
    if item.kind == "object":
        return Verdict(value=TRUE if boxes[named[0]] else FALSE, evidence=evidence)
    if missing := [name for name in named if not boxes[name]]:
        return Verdict(value=UNSEEN, evidence=evidence | {"missing": missing})
    if item.kind == "count":
        number = COUNTED.get(item.args[0].lower())
        if number is None:
            return Verdict(value=OPEN, evidence=evidence | {"why": f"{item.args[0]!r} is no number"})
        holds = len(boxes[named[0]]) == number
    elif item.kind == "scale":
        shares = [((b.x1 - b.x0) / found.width, (b.y1 - b.y0) / found.height) for b in boxes[named[0]]]
        holds = any(has_scale(item.args[0], *share, sizes) for share in shares)
    else:
        image = (Box(0, 0, found.width, found.height),)
        one, other = (boxes.get(item.args[n], image) for n in (0, 2))
        holds = any(has_place(item.args[1], a, b, found, sizes) for a, b in product(one, other))
    return Verdict(value=TRUE if holds else FALSE, evidence=evidence)


def has_scale(scale: str, width: float, height: float, sizes: Sizes) -> bool:
    match scale:
        case "large":
            return width > sizes.large_width or height > sizes.large_height
        case "small":
            return width < sizes.small_width and height < sizes.small_height
        case "long":
            return width > sizes.long or height > sizes.long
        case "short":
            return height < sizes.short and (width < sizes.short or not sizes.compat)
        case "tall":
            return height > sizes.tall
    raise ValueError(f"unknown scale {scale!r}")


def has_place(place: str, one: Box, other: Box, found: Found, sizes: Sizes) -> bool:
    """By the centres."""
    (x, y), (u, v) = one.centre, other.centre
    match place:
        case "left":
            return x < u
        case "right":
            return x > u
        case "top":
            return y > v if sizes.compat else y < v
        case "bottom":
            return False if sizes.compat else y > v
        case "near":
            close = abs(x - u) / found.width < sizes.near, abs(y - v) / found.height < sizes.near
            return any(close) if sizes.compat else all(close)
    raise ValueError(f"unknown place {place!r}")


class Finder:
    """An expert that finds named things. What it finds is kept for the experts that only ask whether a thing is
    there."""

    kinds = frozenset(("object", "count", "scale", "spatial"))

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.singular = singulars() if sizes.compat else lambda name: name
        self._held: OrderedDict[tuple[str, tuple[str, ...]], Found] = OrderedDict()

    def find(self, picture: Picture, names: Sequence[str]) -> Found:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes)}

    def found(self, case: Case) -> Found:
        if len(case.images) != 1:
            raise ValueError(f"a detector looks at one image, and the answer has {len(case.images)}")
        key = case.images[0].id, case.names
        if key not in self._held:
            self._held[key] = self.find(case.images[0], case.names)
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        return self._held[key]

    def check(self, cases: Sequence[Case]) -> Iterator[list[Verdict]]:
        for case in cases:
            try:
                found = self.found(case)
            except (ValueError, OSError) as error:
                yield [Verdict(error=str(error))] * len(case.items)
                continue
            yield [judged(item, found, self.sizes, case.whole, self.singular) for item in case.items]

    def missing(self, case: Case, item: Item) -> list[str]:
        """What an item is about and is not there."""
        boxes = self.found(case).boxes
        return [name for name in names_of(item, case.whole) if not boxes.get(name)]
