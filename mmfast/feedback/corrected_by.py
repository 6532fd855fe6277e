"""`mmfast correct --engine world`: answers corrected from the world's annotation, in the place of people.

The folder is the one that people leave: a card an answer, its work in the journal, handed in by one named `world`. What
it cannot read is skipped with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mmfast.data.text.templates import text_of
from mmfast.engines.base import About, Decode, Engine, Picture, Request
from mmfast.engines.people_desk import Desk
from mmfast.engines.world import CORRECT
from mmfast.feedback.correct import Shown, paths

NAME = "world"
KINDS = {"object": "object", "count": "count", "relation": "position", "colour": "attribute", "word": "text"}
LONGEST = 65536  # words of a list of repairs


def correct_all(engine: Engine, desk: Desk, cards: Iterable[Shown], seed: int = 0) -> None:
    """Every card that is not done yet. `seed`: of what is overlooked."""
    for reply in engine.answer(_asked(desk, cards, seed)):
        if reply.error:
            desk.hand_in(NAME, reply.key, skip=reply.error)
        else:
            desk.hand_in(NAME, reply.key, work={"segments": json.loads(reply.text)})


def _asked(desk: Desk, cards: Iterable[Shown], seed: int) -> Iterator[Request]:
    for one in cards:
        if desk.works.get(one.key, {}).get(NAME) is not None:
            continue
        (answer,) = one.answers.values()
        question = text_of(one.prompt[-1]).strip()
        yield Request(
            key=one.key,
            messages=tuple(one.prompt),
            images=tuple(map(Picture, paths(one, desk.folder))),
            decode=Decode(max_tokens=LONGEST, seed=seed),
            about=About(task=CORRECT, say=_segments, question=question, answers=(answer,)),
        )


def _segments(found: list[Any]) -> str:
    """Repairs as a page would hand them in."""
    given = [{"span": [a, b], "kind": KINDS.get(flaw, "other"), "to": text} for a, b, text, flaw in found]
    return json.dumps(given)
