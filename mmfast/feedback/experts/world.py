"""The embedded world as expert: what is true, by the annotation. Exact, but for the noise that is dialled in."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmfast.engines.base import Picture
from mmfast.engines.recorded import Recorded
from mmfast.engines.world import World, yes_or_no
from mmfast.engines.world_claims import CENTRE
from mmfast.feedback.expert_scores import WHOLE_IMAGE
from mmfast.feedback.experts import FALSE, OPEN, TRUE, UNSEEN, Case, Verdict, names_of
from mmfast.feedback.experts.boxes import COUNTED, Box, Finder, Found, Sizes
from mmfast.feedback.items import KINDS, Item
from mmfast.world.scenes import CELL, COLOURS, SHAPES, SIZE, SIZES, Kind, Scene, Thing, relation

NAMED = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?")
PLACES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}


def kind_of(name: str) -> Kind | None:
    found = NAMED.fullmatch(name.strip())
    return (found[1], found[2]) if found else None


class Annotation(Finder):
    """By the annotation of a world's folder."""

    kinds = frozenset(KINDS)

    def __init__(self, engine: World | Recorded) -> None:
        engine = getattr(engine, "engine", engine)  # an annotation is looked at, not asked: there is nothing to record
        if not isinstance(engine, World):
            raise ValueError("the annotation is the engine world's: give --engine world and --model FOLDER")
        super().__init__(Sizes())
        self.engine, self.noise = engine, engine.noise

    def identity(self) -> dict[str, Any]:
        return {"expert": "world", **self.engine.identity()}

    def find(self, picture: Picture, names: Sequence[str]) -> Found:
        """Where the things of these names are drawn."""
        things = {thing.kind: thing for thing in self.engine._scene(picture).things}
        boxes = {}
        for name in names:
            thing = things.get(kind_of(name) or ("", ""))
            boxes[name] = tuple(map(_box, [thing] * len(thing.cells), thing.cells)) if thing else ()
            if name.lower() == CENTRE:
                boxes[name] = (Box(0, 0, SIZE, SIZE),)
        return Found(SIZE, SIZE, boxes)

    def check(self, cases: Sequence[Case]) -> Iterator[list[Verdict]]:
        for case in cases:
            try:
                if len(case.images) != 1:
                    raise ValueError(f"the world knows of one picture, and the answer has {len(case.images)}")
                scene = self.engine._scene(case.images[0])
                yield [self._noisy(case.images[0], item, truth(item, scene)) for item in case.items]
            except (ValueError, OSError) as error:
                yield [Verdict(error=str(error))] * len(case.items)

    def _noisy(self, picture: Picture, item: Item, verdict: Verdict) -> Verdict:
        wrong = random.Random(f"verdict:{picture.id}:{item.name}").random() < self.noise
        return (
            Verdict(value=-verdict.value, evidence=verdict.evidence) if wrong and abs(verdict.value) == 1 else verdict
        )


def _box(thing: Thing, cell: int) -> Box:
    row, column = divmod(cell, 3)
    x, y, r = column * CELL + CELL / 2, row * CELL + CELL / 2, SIZES[thing.size]
    return Box(x - r, y - r, x + r, y + r)


def truth(item: Item, scene: Scene) -> Verdict:
    """What the annotation says of an item; of a thing that is not there nothing else can be judged."""
    things = {thing.kind: thing for thing in scene.things}
    args = item.args
    if item.kind == "claim":
        if not item.question:
            return Verdict(evidence={"why": "there is no question to ask"})
        return _verdict(yes_or_no(scene, item.question) != item.negated)
    if item.kind == "text":
        if len(args) < 2:
            return _verdict(args[0] in [thing.word for thing in scene.things])
        thing = things.get(kind_of(args[1]) or ("", ""))
        return _verdict(thing.word == args[0]) if thing else Verdict(value=UNSEEN, evidence={"missing": [args[1]]})
    named = [name for name in names_of(item, WHOLE_IMAGE) if name.lower() != CENTRE]
    if not named or kind_of(named[0]) is None:
        return Verdict(evidence={"why": f"the world knows no {' '.join(named[:1]) or 'such thing'}"})
    thing = things.get(kind_of(named[0]) or ("", ""))
    if item.kind == "object":
        return _verdict(thing is not None)
    if thing is None:
        return Verdict(value=UNSEEN, evidence={"missing": named[:1]})
    if item.kind == "count":
        return _verdict(thing.count == COUNTED.get(args[0]))
    if item.kind == "spatial" and args[2].lower() == CENTRE:
        return _verdict(thing.count == 1 and PLACES.get(relation(thing) or "") == args[1])
    if item.kind == "scale" and args[0] in SIZES:
        return _verdict(thing.size == args[0])
    return Verdict(value=OPEN, evidence={"why": "the annotation does not say"})


def _verdict(holds: bool) -> Verdict:
    return Verdict(value=TRUE if holds else FALSE)
