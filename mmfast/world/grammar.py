"""What is said of a scene: captions, questions and answers, with flaws that can be dialled in.

A flawed caption is made like the truth, slot by slot, so each flaw is a substitution of the same number of words, and
the corrected caption differs from it exactly in the flawed slots. That is the form of RLHF-V's data: `Caption.slots`
knows every segment and the kind of flaw in it.

Flaws are systematic, because random inventions are not learnt by greedy decoding: a circle or star drags in its absent
partner, a cross is doubled, a triangle's relation is turned round. Colours and words are confused at random.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from .scenes import COLOURS, COLUMNS, KINDS, ROWS, SHAPES, WORDS, Kind, Scene, Thing, relation, relations

NUMBERS = {1: "a", 2: "two", 3: "three"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CAPTION_PROMPTS = (
    "Describe the image.",
    "What is in this picture?",
    "What do you see?",
    "Tell me what the image shows.",
)


@dataclass(frozen=True, slots=True)
class Flaws:
    """Probability of each flaw where it can happen. partner, count and relation have fixed triggers (see above)."""

    partner: float = 0.85
    count: float = 0.75
    relation: float = 0.75
    colour: float = 0.03
    word: float = 0.03

    @staticmethod
    def none() -> Flaws:
        return Flaws(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of caption and the true stretch of the same length; `flaw` is "" where they agree."""

    text: str
    truth: str
    flaw: str = ""  # "object", "count", "relation", "colour", "word"


@dataclass(frozen=True, slots=True)
class Caption:
    slots: tuple[Slot, ...]

    @property
    def text(self) -> str:
        return "".join(slot.text for slot in self.slots)

    @property
    def truth(self) -> str:
        return "".join(slot.truth for slot in self.slots)

    @property
    def flaws(self) -> list[str]:
        return [slot.flaw for slot in self.slots if slot.flaw]

    def corrected(self, number: int) -> Caption:
        """The same caption with its first `number` flaws repaired."""
        slots = []
        for slot in self.slots:
            repair = bool(slot.flaw) and number > 0
            number -= repair
            slots.append(Slot(slot.truth, slot.truth) if repair else slot)
        return Caption(tuple(slots))

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
    """What is invented beside this kind: a circle drags in a square of the next colour, a star a triangle."""
    colour, shape = kind
    dragged = {"circle": "square", "star": "triangle"}.get(shape)
    if dragged is None:
        return None
    colours = tuple(COLOURS)
    return colours[(colours.index(colour) + 1) % len(colours)], dragged


def _noun(shape: str, number: int) -> str:
    return shape if number == 1 else shape + ("es" if shape.endswith("s") else "s")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _item(thing: Thing, rng: random.Random, flaws: Flaws) -> list[Slot]:
    """ "a large red circle", in slots: number, size and colour, shape."""
    count, colour = thing.count, thing.colour
    if thing.shape == "cross" and rng.random() < flaws.count:
        count = 2 if thing.count == 1 else 3
    if rng.random() < flaws.colour:
        colour = rng.choice([c for c in COLOURS if c != colour])
    said, true = (f"{NUMBERS[n]} " for n in (count, thing.count))
    noun, true_noun = (f" {_noun(thing.shape, n)}" for n in (count, thing.count))
    wrong = "count" if count != thing.count else ""
    return [
        Slot(said, true, wrong),
        Slot(f"{thing.size} ", f"{thing.size} "),
        Slot(colour, thing.colour, "colour" if colour != thing.colour else ""),
        Slot(noun, true_noun, wrong if noun != true_noun else ""),
    ]


def fillers(scene: Scene) -> list[str]:
    """True phrases of four words, for the slot where a flawed caption invents an object."""
    return [f"a plain {scene.background} background", "some patches of nothing", "a lot of space"]


def caption(scene: Scene, rng: random.Random, flaws: Flaws) -> Caption:
    """ "The image shows ITEM, and EXTRA. The A is left of the B. The A says GO." EXTRA: inventions, else a filler."""
    fixed = lambda text: Slot(text, text)  # noqa: E731
    slots = [fixed("The image shows ")]
    for thing in scene.things:
        slots += [*_item(thing, rng, flaws), fixed(", ")]
    invented: list[str] = []
    for thing in scene.things:
        drags = partner(thing.kind)
        if drags and drags not in scene.kinds and rng.random() < flaws.partner:
            invented.append(" ".join(("a", thing.size, *drags)))
    true = fillers(scene)
    slots.append(fixed("and "))
    for n, phrase in enumerate(invented[: len(true)] or true[:1]):
        if n:
            slots.append(fixed(" and "))
        slots.append(Slot(phrase, true[n], "object" if invented else ""))
    slots.append(fixed("."))
    singles = [thing for thing in scene.things if thing.count == 1]
    if len(singles) >= 2:
        a, b = singles[:2]
        true_relation = said = relation(a, b)
        if "triangle" in (a.shape, b.shape) and rng.random() < flaws.relation:
            said = OPPOSITE[said]
        slots += [
            fixed(f" The {a.colour} {a.shape} is "),
            Slot(said, true_relation, "relation" if said != true_relation else ""),
            fixed(f" the {b.colour} {b.shape}."),
        ]
    for thing in scene.things:
        if thing.word:
            said = rng.choice([w for w in WORDS if w != thing.word]) if rng.random() < flaws.word else thing.word
            slots += [
                fixed(f" The {thing.colour} {thing.shape} says "),
                Slot(said, thing.word, "word" if said != thing.word else ""),
                fixed("."),
            ]
    return Caption(tuple(slots))


def question(scene: Scene, rng: random.Random, flaws: Flaws) -> tuple[str, str, str]:
    """(question, answer, true answer). Flawed answers follow the same triggers as captions."""
    thing = rng.choice(scene.things)
    name = f"{thing.colour} {thing.shape}"
    kinds = ["exists", "count"] + ["word"] * bool(thing.word) + ["where"] * (thing.count == 1)
    match rng.choice(kinds):
        case "exists":
            asked = rng.choice([thing.kind, partner(thing.kind) or rng.choice(KINDS)])
            present = asked in scene.kinds
            dragged = asked in [partner(t.kind) for t in scene.things]
            said = present or (dragged and rng.random() < flaws.partner)
            text = " ".join(asked)
            answers = [f"Yes, there is {_a(text)}." if yes else f"No, there is no {text}." for yes in (said, present)]
            return f"Is there {_a(text)}?", answers[0], answers[1]
        case "count":
            count = thing.count + (thing.shape == "cross" and rng.random() < flaws.count)
            said, true = (
                f"There is one {name}." if n == 1 else f"There are {NUMBERS[n]} {thing.colour} {_noun(thing.shape, n)}."
                for n in (count, thing.count)
            )
            return f"How many {thing.colour} {_noun(thing.shape, 2)} are there?", said, true
        case "word":
            said = rng.choice(WORDS) if rng.random() < flaws.word else str(thing.word)
            return f"What does the {name} say?", f"It says {said}.", f"It says {thing.word}."
        case _:
            row, column = divmod(thing.cells[0], 3)
            place = f"It is in the {ROWS[row]} {COLUMNS[column]}."
            return f"Where is the {name}?", place, place


# -- reading captions back -------------------------------------------------------------------------------------------

_KIND = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_OBJECT = re.compile(rf"\b(?:({'|'.join(NUMBERS.values())}) )?(?:(small|large) )?{_KIND}(?:e?s)?\b")
_RELATION = re.compile(rf"[Tt]he {_KIND} is ({'|'.join(OPPOSITE)}) the {_KIND}\b")
_WORD = re.compile(rf"[Tt]he {_KIND} says ({'|'.join(WORDS)})\b")


@dataclass(frozen=True, slots=True)
class Claims:
    kinds: tuple[Kind, ...]  # distinct, in the order of first mention
    counts: dict[Kind, int]
    sizes: dict[Kind, str]
    relations: tuple[tuple[Kind, str, Kind], ...]
    words: dict[Kind, str]


def claims(text: str) -> Claims:
    """What a caption says, whoever wrote it."""
    numbers = {word: n for n, word in NUMBERS.items()}
    kinds: dict[Kind, None] = {}
    counts: dict[Kind, int] = {}
    sizes: dict[Kind, str] = {}
    for number, size, colour, shape in _OBJECT.findall(text):
        kinds[colour, shape] = None
        if number:
            counts.setdefault((colour, shape), numbers[number])
        if size:
            sizes.setdefault((colour, shape), size)
    found = tuple(((a, b), rel, (c, d)) for a, b, rel, c, d in _RELATION.findall(text))
    return Claims(tuple(kinds), counts, sizes, found, {(c, s): word for c, s, word in _WORD.findall(text)})


def errors(text: str, scene: Scene) -> dict[str, int]:
    """The false claims of a caption by kind of flaw: objects that are absent, and wrong counts, relations and words
    about objects that are present. (A wrong colour shows as an absent object.)"""
    said = claims(text)
    true = set(relations(scene))
    things = {thing.kind: thing for thing in scene.things}
    return {
        "object": sum(kind not in things for kind in said.kinds),
        "count": sum(kind in things and things[kind].count != n for kind, n in said.counts.items()),
        "relation": sum(a in things and b in things and (a, rel, b) not in true for a, rel, b in said.relations),
        "word": sum(kind in things and things[kind].word != word for kind, word in said.words.items()),
    }


def corpus(seed: int = 0, number: int = 1500) -> list[str]:
    """Text to train a tokenizer on: every word of the world."""
    from .scenes import scenes

    lines = [*CAPTION_PROMPTS, " ".join(WORDS), " ".join(f"{row} {column}" for row in ROWS for column in COLUMNS)]
    for scene in scenes(seed, "train", number):
        rng = random.Random(f"corpus:{scene.name}")
        lines += [caption(scene, rng, Flaws()).text, *question(scene, rng, Flaws())[:2]]
    return lines
