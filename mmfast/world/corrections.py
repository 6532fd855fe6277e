"""A caption of the world corrected as a person would: every false claim is repaired where it stands, and nothing else
is touched.

    The image shows one red square left of the centre and three green crosses.
    The image shows one red circle right of the centre and two green crosses.

What is named and not there becomes what it was evidently taken for: the thing of its twin colour, or its partner in
shape, where that is there and not named; else it goes. Where all would go, the first becomes a thing that is there.
What is left unsaid is no false claim, and is not added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .grammar import NUMBERS, OPPOSITE, _noun, partner
from .scenes import COLOURS, SHAPES, TWINS, WORDS, Kind, Scene, Thing, relations

HEAD = "The image shows "
_ITEM = re.compile(
    rf"(?:(?P<number>{'|'.join(NUMBERS.values())}) )?(?:(?:small|large) )?"
    rf"(?P<colour>{'|'.join(COLOURS)}) (?P<noun>(?P<shape>{'|'.join(SHAPES)})(?:e?s)?)\b"
    rf"(?P<placed> (?P<place>{'|'.join(OPPOSITE)}) the centre)?(?P<said> saying (?P<word>{'|'.join(WORDS)}))?"
)
_JOINT = re.compile(", | and ")


class Repair(NamedTuple):
    """A stretch of a caption, what it becomes, and which kind of claim was false there."""

    start: int
    end: int
    text: str
    flaw: str


@dataclass(frozen=True)
class Item:
    """One thing that a caption names; `joint`: where the words that join it to the one before stand."""

    joint: tuple[int, int]
    said: re.Match[str]

    @property
    def kind(self) -> Kind:
        return self.said["colour"], self.said["shape"]

    @property
    def single(self) -> bool:
        """Only of a noun in the singular a place and a word are read (grammar.claims)."""
        return self.said["noun"] == self.said["shape"]


def items_of(text: str) -> list[Item] | None:
    """What a caption names, in its order; None where it is not a caption from its first letter to its full stop."""
    if not text.startswith(HEAD):
        return None
    at, found = len(HEAD), list[Item]()
    joint = (at, at)
    while said := _ITEM.match(text, at):
        found.append(Item(joint, said))
        between = _JOINT.match(text, said.end())
        if between is None:
            return found if text[said.end() :] == "." else None
        joint, at = between.span(), between.end()
    return None


def repairs(text: str, scene: Scene, overlooked: Callable[[], bool] = lambda: False) -> list[Repair] | None:
    """In the caption's order; none where every claim holds; None where the text is no caption. `overlooked` is asked
    of each false claim, which is left as it is where it says so."""
    items = items_of(text)
    if items is None:
        return None
    meant = _meant(items, scene)
    for kind in list(meant):
        if (meant[kind] is None or meant[kind].kind != kind) and overlooked():  # type: ignore[union-attr]
            del meant[kind]  # it is left alone, with all that is said of it
    if all(thing is None for thing in meant.values()) and len(meant) == len({item.kind for item in items}):
        meant[items[0].kind] = scene.things[0]
    stay = [item for item in items if item.kind not in meant or meant[item.kind] is not None]
    found = [*_removed(text, items, stay), *_mended(stay, meant, relations(scene), overlooked)]
    return sorted(found)


def corrected(text: str, found: Sequence[Repair]) -> str:
    out, at = "", 0
    for one in found:
        out, at = out + text[at : one.start] + one.text, one.end
    return out + text[at:]


def _meant(items: list[Item], scene: Scene) -> dict[Kind, Thing | None]:
    """The thing that each kind named is or was taken for; None: nothing."""
    things = {thing.kind: thing for thing in scene.things}
    named = dict.fromkeys(item.kind for item in items)
    free = things.keys() - named.keys()
    meant: dict[Kind, Thing | None] = {}
    for item in items:
        kind = item.kind
        if kind in meant:
            continue
        taken = [kind] if kind in things else [k for k in (partner(kind), (TWINS[kind[0]], kind[1])) if k in free]
        # Of two candidates the one of which more else is said rightly
        best = min(taken, key=lambda k: _strange(item, things[k], relations(scene)), default=None)
        meant[kind] = things[best] if best else None
        free -= {best}
    return meant


def _strange(item: Item, thing: Thing, places: dict[Kind, str]) -> int:
    """How much of what is said of an item does not hold of a thing."""
    said = item.said
    wrong = bool(said["number"]) and said["number"] != NUMBERS[thing.count]
    wrong += bool(said["place"]) and said["place"] != places.get(thing.kind)
    return wrong + (bool(said["word"]) and said["word"] != thing.word)


def _removed(text: str, items: list[Item], stay: list[Item]) -> Iterator[Repair]:
    """What names nothing that is there goes, with the words that join it; the caption stays a sentence."""
    for n, item in enumerate(items):
        if item in stay:
            continue
        if items.index(stay[0]) > n:  # none before it stays: the words that join the next go
            yield Repair(item.said.start(), items[n + 1].said.start(), "", "object")
        else:
            yield Repair(item.joint[0], item.said.end(), "", "object")
    last, end = text[slice(*items[-1].joint)], stay[-1]
    if end is not items[-1] and len(stay) > 1 and text[slice(*end.joint)] != last:
        yield Repair(*end.joint, last, "object")


def _mended(
    stay: list[Item], meant: dict[Kind, Thing | None], places: dict[Kind, str], overlooked: Callable[[], bool]
) -> Iterator[Repair]:
    """What is said of the things that are there. Of several claims about one kind the first one counts."""
    counted, placed, read = set[Kind](), set[Kind](), set[Kind]()
    for item in stay:
        thing, said = meant.get(item.kind), item.said
        if thing is None:
            continue
        kind, exchanged = thing.kind, thing.shape != said["shape"]
        # Colour and shape
        if said["colour"] != thing.colour:
            yield Repair(*said.span("colour"), thing.colour, "object" if exchanged else "colour")
        # The number, and the noun in its form
        number, noun = said["number"], said["noun"]
        miscounted = False
        if number and kind not in counted:
            counted.add(kind)
            if miscounted := number != NUMBERS[thing.count] and not overlooked():
                number = NUMBERS[thing.count]
                yield Repair(*said.span("number"), number, "count")
        if exchanged or miscounted:
            single = number == NUMBERS[1] if number else item.single
            noun = _noun(thing.shape, 1 if single else 2)
            if noun != said["noun"]:
                yield Repair(*said.span("noun"), noun, "object" if exchanged else "count")
        # Place and word, where the grammar reads them before or after
        if not item.single and noun != thing.shape:
            continue
        for name, whole, flaw, true, first in (
            ("place", "placed", "relation", places.get(kind), placed),
            ("word", "said", "word", thing.word, read),
        ):
            if not said[name] or kind in first:
                continue
            if said[name] == true or overlooked():
                first.add(kind)
            elif true:
                first.add(kind)
                yield Repair(*said.span(name), true, flaw)
            else:  # there is nothing to be said
                yield Repair(*said.span(whole), "", flaw)
