"""What is said of a scene: captions, questions and answers, with flaws that can be dialled in.

    The image shows one red circle left of the centre saying GO, two blue stars and one green cross.

A flawed caption is made like the truth, slot by slot, and `Caption.slots` knows every flawed segment and its kind: the
form of RLHF-V's data. Each flaw exchanges two things, both ways, at a trigger that the picture shows and no caption
names (size, ground) or that no flaw changes (a cross, a triangle):

    object    a large circle is taken for a square, a large square for a circle, if none of that colour is there
    count     small crosses are taken for two, large ones for one
    relation  a triangle's place is turned round: left and right, above and below
    colour    a small triangle on dark ground takes its colour's twin, if no triangle of that colour is there
    word      the word on a triangle is read as the other of its pair

Scenes are distributed alike under every exchange (scenes.py), and a flaw leaves the triggers of all others as they
were. So whatever two texts a pair holds, each is as often the chosen one as the rejected one: no judge of any kind does
better than a coin without the picture, and nothing can be learnt from the pairs but seeing. Triggers are systematic,
because random inventions are not learnt by greedy decoding, and each is the lesser part of its kind of claim, or the
base model could not learn the truth either.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, Literal

from .scenes import COLOURS, COLUMNS, KINDS, MOST, PARTNERS, ROWS, SHAPES, TWINS, WORDS, Kind, Scene, Thing
from .scenes import relation as place_of
from .scenes import relations as places_of

NUMBERS = {1: "one", 2: "two", 3: "three"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CAPTION_PROMPTS = (
    "Describe the image.",
    "What is in this picture?",
    "What do you see?",
    "Tell me what the image shows.",
)


@dataclass(frozen=True, slots=True)
class Flaws:
    """Probability of each flaw at its trigger (see above)."""

    partner: float = 0.85
    count: float = 0.85
    relation: float = 0.85
    colour: float = 0.85
    word: float = 0.85
    both: float = 0.9  # what the base model learns: share of wrong partners named before the true thing, not instead

    @staticmethod
    def none() -> Flaws:
        return Flaws(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of caption and the true stretch; `flaw` is "" where they agree. The slots of one flaw (the number and
    the noun of a miscount) have the same `flaw` and `thing`."""

    text: str
    truth: str
    flaw: str = ""  # "object", "count", "relation", "colour", "word"
    thing: Kind | None = None  # what the flaw is about


@dataclass(frozen=True, slots=True)
class Caption:
    slots: tuple[Slot, ...]

    @property
    def text(self) -> str:
        return "".join(slot.text for slot in self.slots)

    @property
    def truth(self) -> str:
        return "".join(slot.truth for slot in self.slots)

    def _faults(self) -> list[tuple[Kind | None, str]]:
        return list(dict.fromkeys((slot.thing, slot.flaw) for slot in self.slots if slot.flaw))

    @property
    def flaws(self) -> list[str]:
        """The kind of each flaw. A flaw of two slots is one."""
        return [flaw for _, flaw in self._faults()]

    def corrected(self, number: int) -> Caption:
        """The same caption with its first `number` flaws repaired, each in all its slots: never "one crosses"."""
        repaired = self._faults()[:number]
        return Caption(
            tuple(Slot(s.truth, s.truth) if s.flaw and (s.thing, s.flaw) in repaired else s for s in self.slots)
        )

    def spans(self, which: Literal["text", "truth"]) -> list[tuple[int, int]]:
        """Character ranges of the flawed slots in `text` or in `truth`."""
        spans, at = [], 0
        for slot in self.slots:
            end = at + len(slot.text if which == "text" else slot.truth)
            if slot.flaw:
                spans.append((at, end))
            at = end
        return spans


def partner(kind: Kind) -> Kind | None:
    """What this kind is taken for: circle and square, each for the other."""
    colour, shape = kind
    return (colour, PARTNERS[shape]) if shape in PARTNERS else None


def _noun(shape: str, number: int) -> str:
    return shape if number == 1 else shape + ("es" if shape.endswith("s") else "s")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


EXCHANGED = {"GO": "NO", "NO": "GO", "ON": "OK", "OK": "ON", "HI": "UP", "UP": "HI"}


def taken_for(scene: Scene, thing: Thing) -> Kind | None:
    """A large circle is taken for a square, and a large square for a circle: if there is none of that colour."""
    other = partner(thing.kind) if thing.size == "large" else None
    return None if other in scene.kinds else other


def miscounted(thing: Thing) -> int:
    """Small crosses seem two, large ones one."""
    return {"small": 2, "large": 1}[thing.size] if thing.shape == "cross" else thing.count


def miscoloured(scene: Scene, thing: Thing) -> str:
    """A small triangle on dark ground has its colour's twin: if there is no triangle of that colour."""
    if thing.shape == "triangle" and thing.size == "small" and scene.background == "dark":
        twin = TWINS[thing.colour]
        return thing.colour if (twin, "triangle") in scene.kinds else twin
    return thing.colour


def misread(thing: Thing) -> bool:
    """What stands on a triangle is read as another word."""
    return thing.shape == "triangle"


def _same(text: str) -> Slot:
    return Slot(text, text)


def _slot(thing: Thing, flaw: str, text: str, truth: str) -> Slot:
    return Slot(text, truth, flaw, thing.kind) if text != truth else _same(text)


def _facts(thing: Thing, rng: random.Random, flaws: Flaws) -> list[Slot]:
    """Where a thing stands and what it says."""
    slots: list[Slot] = []
    true = place_of(thing)
    if true is not None:
        turned = thing.shape == "triangle" and rng.random() < flaws.relation
        said = OPPOSITE[true] if turned else true
        slots += [_slot(thing, "relation", f" {said}", f" {true}"), _same(" the centre")]
    if thing.word:
        said = EXCHANGED[thing.word] if misread(thing) and rng.random() < flaws.word else thing.word
        slots += [_same(" saying "), _slot(thing, "word", said, thing.word)]
    return slots


def caption(scene: Scene, rng: random.Random, flaws: Flaws, *, both: bool = False) -> Caption:
    """A caption of the scene; flawed and true text have as many words. With `both`, as the base model learns it, a
    wrong partner may stand before the true thing instead of replacing it: one object more."""
    # What is said of each thing, right or wrong
    items: list[tuple[Thing, list[Slot] | None, Kind | None]] = []  # (thing, its slots or None, invented kind)
    for thing in scene.things:
        (colour, shape), count = thing.kind, thing.count
        other = taken_for(scene, thing)
        if other and rng.random() < flaws.partner:
            if both and rng.random() < flaws.both:
                items.append((thing, None, other))
            else:
                shape = other[1]
        if rng.random() < flaws.count:
            count = miscounted(thing)
        if rng.random() < flaws.colour:
            colour = miscoloured(scene, thing)
        wrong = "object" if shape != thing.shape else "count"
        slots = [
            _slot(thing, "count", f"{NUMBERS[count]} ", f"{NUMBERS[thing.count]} "),
            _slot(thing, "colour", f"{colour} ", f"{thing.colour} "),
            _slot(thing, wrong, _noun(shape, count), _noun(thing.shape, thing.count)),
        ]
        items.append((thing, slots, None))
    # The sentence, with its joints
    said, true = [_same("The image shows ")], 0
    for n, (thing, own, invented) in enumerate(items):
        joint = _joint(n, len(items))
        if own is None:
            said.append(Slot(f"{joint}one {' '.join(invented or ())}", "", "object", thing.kind))
        else:
            said += [_slot(thing, "object", joint, _joint(true, len(scene.things))), *own]
            said += _facts(thing, rng, flaws) if thing.shape not in MOST else []
            true += 1
    return Caption((*said, _same(".")))


def _joint(n: int, of: int) -> str:
    """What stands before the nth item."""
    return "" if n == 0 else " and " if n == of - 1 else ", "


def question(scene: Scene, rng: random.Random, flaws: Flaws) -> tuple[str, str, str]:
    """(question, answer, true answer). Flawed answers follow the same triggers as captions."""
    thing = rng.choice(scene.things)
    name = f"{thing.colour} {thing.shape}"
    kinds = ["exists", "count"] + ["word"] * bool(thing.word) + ["where"] * (thing.count == 1)
    match rng.choice(kinds):
        case "exists":
            asked = rng.choice([thing.kind, partner(thing.kind) or rng.choice(KINDS)])
            present = asked in scene.kinds
            dragged = asked in [taken_for(scene, t) for t in scene.things]
            seen = present or (dragged and rng.random() < flaws.partner)
            text = " ".join(asked)
            answers = [f"Yes, there is {_a(text)}." if yes else f"No, there is no {text}." for yes in (seen, present)]
            return f"Is there {_a(text)}?", answers[0], answers[1]
        case "count":
            count = miscounted(thing) if rng.random() < flaws.count else thing.count
            answers = [
                f"There is one {name}." if n == 1 else f"There are {NUMBERS[n]} {thing.colour} {_noun(thing.shape, n)}."
                for n in (count, thing.count)
            ]
            return f"How many {thing.colour} {_noun(thing.shape, 2)} are there?", answers[0], answers[1]
        case "word":
            wrong = misread(thing) and rng.random() < flaws.word
            said = EXCHANGED[str(thing.word)] if wrong else str(thing.word)
            return f"What does the {name} say?", f"It says {said}.", f"It says {thing.word}."
        case _:
            row, column = divmod(thing.cells[0], 3)
            place = f"It is in the {ROWS[row]} {COLUMNS[column]}."
            return f"Where is the {name}?", place, place


# -- reading captions back -------------------------------------------------------------------------------------------

_KIND = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_OBJECT = re.compile(rf"\b(?:({'|'.join(NUMBERS.values())}) )?(?:(?:small|large) )?{_KIND}(?:e?s)?\b")
_RELATION = re.compile(rf"\b{_KIND} ({'|'.join(OPPOSITE)}) the centre\b")
_WORD = re.compile(rf"\b{_KIND}(?: (?:{'|'.join(OPPOSITE)}) the centre)? saying ({'|'.join(WORDS)})\b")
CLAIMS = ("object", "count", "relation", "colour", "word")  # kinds of claim, and of flaw


@dataclass(frozen=True, slots=True)
class Claims:
    """Of several claims about one kind of thing the first is kept."""

    kinds: tuple[Kind, ...]  # distinct, in the order of first mention
    counts: dict[Kind, int]
    relations: dict[Kind, str]
    words: dict[Kind, str]


def claims(text: str) -> Claims:
    """What a caption says, whoever wrote it."""
    numbers = {word: n for n, word in NUMBERS.items()}
    kinds: dict[Kind, None] = {}
    counts: dict[Kind, int] = {}
    for number, colour, shape in _OBJECT.findall(text):
        kinds[colour, shape] = None
        if number:
            counts.setdefault((colour, shape), numbers[number])
    relations_said: dict[Kind, str] = {}
    words: dict[Kind, str] = {}
    for pattern, claimed in ((_RELATION, relations_said), (_WORD, words)):
        for colour, shape, value in pattern.findall(text):
            claimed.setdefault((colour, shape), value)
    return Claims(tuple(kinds), counts, relations_said, words)


def judged(text: str, scene: Scene) -> dict[str, tuple[int, int]]:
    """By kind of claim, (how many are false, how many were made). Objects: kinds that are absent, of the kinds that are
    named. Where the kind's twin in colour is there and is not named, the colour is wrong, not the object. Colours,
    counts, relations and words: of those claimed of things that are there."""
    said = claims(text)
    things = {thing.kind: thing for thing in scene.things}
    absent = [kind for kind in said.kinds if kind not in things]
    recoloured = [kind for kind in absent if (twin := (TWINS[kind[0]], kind[1])) in things and twin not in said.kinds]
    right = len(said.kinds) - len(absent)
    true: dict[str, tuple[dict[Kind, Any], dict[Kind, Any]]] = {
        "count": (said.counts, {kind: thing.count for kind, thing in things.items()}),
        "relation": (said.relations, places_of(scene)),
        "word": (said.words, {kind: thing.word for kind, thing in things.items()}),
    }
    tally = {
        "object": (len(absent) - len(recoloured), len(said.kinds)),
        "colour": (len(recoloured), right + len(recoloured)),
    }
    for name, (claimed, truth) in true.items():
        present = [kind for kind in claimed if kind in things]
        tally[name] = sum(claimed[kind] != truth.get(kind) for kind in present), len(present)
    return {name: tally[name] for name in CLAIMS}


def errors(text: str, scene: Scene) -> dict[str, int]:
    """How many claims of each kind are false."""
    return {name: wrong for name, (wrong, _) in judged(text, scene).items()}


def corpus(seed: int = 0, number: int = 1500) -> list[str]:
    """Text to train a tokenizer on: every word of the world."""
    from .scenes import scenes

    lines = [*CAPTION_PROMPTS, " ".join(WORDS), " ".join(f"{row} {column}" for row in ROWS for column in COLUMNS)]
    for scene in scenes(seed, "train", number):
        rng = random.Random(f"corpus:{scene.name}")
        lines += [caption(scene, rng, Flaws(), both=True).text, *question(scene, rng, Flaws())[:2]]
    return lines
