"""Items: the smallest things that an answer says and that can be checked alone.

An aspect is what a decomposing model is asked for (DGPref's five, RLAIF-V's claims); an item's kind is what its check
needs. Attributes of size are of the kind `scale` and places of the kind `spatial`: boxes decide them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmfast.engines.base import canonical
from mmfast.feedback.expert_scores import NUMBERS
from mmfast.feedback.folders import current
from mmfast.feedback.reading import manifest_of
from mmfast.feedback.spans import Span, plural

SIZES = {"entity": 1, "attribute": 2, "count": 2, "relation": 3, "text": 1}  # parts of a tuple of each aspect
ASPECTS = tuple(SIZES)
KINDS = ("object", "attribute", "count", "relation", "scale", "spatial", "text", "claim")
# Words of size and of place -> the one that stands for them in args; a relation has the first that it holds
_SCALES = {
    "large": "large huge larger big",
    "small": "small tiny smaller",
    "long": "long",
    "short": "short",
    "tall": "tall high",
}
SCALES = {word: scale for scale, words in _SCALES.items() for word in words.split()}
_BELOW = ("bottom", "below", "under", "beneath", "underneath")
PLACES = {"left": "left", "right": "right", "top": "top", "above": "top", **dict.fromkeys(_BELOW, "bottom")}
PLACES |= {"near": "near", "next": "near"}
AS_DIGITS = {str(number): word for word, number in NUMBERS.items()}


@dataclass(frozen=True, kw_only=True)
class Item:
    """`args` are the parts that a check reads; `claim` says the same in words. A yes to `question` makes the claim
    true, or false where it is `negated`; without a question only experts that need none can check it."""

    kind: str
    args: tuple[str, ...] = ()
    claim: str
    question: str = ""
    negated: bool = False
    span: Span | None = None  # the answer's characters that it comes from

    @property
    def name(self) -> str:
        """What is checked: equal for items of several answers that ask the same of an image."""
        return canonical([self.kind, list(self.args), self.question, self.negated, "" if self.question else self.claim])

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"args": list(self.args), "span": list(self.span) if self.span else None}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Item:
        """What `row` wrote, or a row that someone else made."""
        given = {f.name: row[f.name] for f in fields(cls) if row.get(f.name) is not None}
        if missing := [name for name in ("kind", "claim") if not isinstance(given.get(name), str)]:
            raise ValueError(f"an item has no {missing[0]}")
        given["args"] = tuple(map(str, given.get("args", ())))
        span = given.pop("span", None)
        return cls(**given, span=(int(span[0]), int(span[1])) if span else None)


def item_of(aspect: str, parts: Sequence[str], *, compat: bool = False) -> Item:
    """A tuple of the decomposing model as an item. compat: DGPref's own wording and routing, which asks "Is the" of
    many and takes "stop sign" for something at the top."""
    claim = " ".join(parts)
    match aspect:
        case "entity":
            return Item(kind="object", args=tuple(parts), claim=claim, question=f"{_there(parts[0])} {_a(parts[0])}?")
        case "count":
            number, thing = AS_DIGITS.get(parts[0], parts[0]), parts[1]
            there = "Is there" if number == "one" else "Are there"
            return Item(kind="count", args=(number, thing), claim=claim, question=f"{there} {number} {thing}?")
        case "attribute":
            said, thing = parts
            scale = SCALES.get(said.lower())
            kind, args = "scale" if scale else "attribute", (scale or said, thing)
            return Item(kind=kind, args=args, claim=claim, question=f"{_be(thing, compat)} the {thing} {said}?")
        case "relation":
            return _relation(*parts, compat=compat)
        case "text":
            return _text(*parts)
    raise ValueError(f"unknown aspect {aspect!r}: there are {', '.join(ASPECTS)}")


def _relation(one: str, said: str, other: str, *, compat: bool) -> Item:
    place = place_of(said, compat=compat)
    question = f"{_be(one, compat)} the {one} {said} {other if compat else _the(other)}?"
    kind, args = "spatial" if place else "relation", (one, place or said, other)
    return Item(kind=kind, args=args, claim=f"{one} {said} {other}", question=question)


def _text(said: str, thing: str = "") -> Item:
    """What is written, and on what, if that is said."""
    if thing:
        question = f"Does the {thing} say {said}?"
        return Item(kind="text", args=(said, thing), claim=f"{thing} says {said}", question=question)
    return Item(kind="text", args=(said,), claim=said, question=f'Does the picture show the text "{said}"?')


def place_of(relation: str, *, compat: bool = False) -> str:
    """The place that a relation says; empty where it says none. compat: DGPref looks for letters, not for words."""
    text = relation.lower()
    words = re.findall(r"\w+", text)
    return next((place for word, place in PLACES.items() if (word in text if compat else word in words)), "")


def quoted(text: str, *, compat: bool = False) -> list[str]:
    """What an answer says is written in the picture: its quotations. compat: those in straight quotes alone."""
    pairs = ('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("『", "』")
    used = pairs[:1] if compat else pairs
    found = [(m.start(), m[1]) for a, b in used for m in re.finditer(f"{a}([^{a}{b}]*?){b}", text)]
    return list(dict.fromkeys(said if compat else said.strip() for _, said in sorted(found) if said.strip() or compat))


def _there(noun: str) -> str:
    return "Are there" if plural(noun) else "Is there"


def _a(noun: str) -> str:
    if plural(noun):
        return noun
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _the(noun: str) -> str:
    return noun if noun.lower().startswith(("the ", "a ", "an ")) else f"the {noun}"


def _be(noun: str, compat: bool) -> str:
    return "Are" if plural(noun) and not compat else "Is"


@dataclass(frozen=True, kw_only=True)
class Decomposed:
    """What an answer was taken apart into."""

    answer_key: str
    row: int
    source: str
    images: tuple[str, ...]
    items: tuple[Item, ...]


def read_items(folder: str | Path) -> Iterator[Decomposed]:
    """Every decomposed answer once, in the order of the answers."""
    made_by = manifest_of(Path(folder))
    if made_by is None or made_by.get("stage") != "decompose":
        what = "no folder of a stage" if made_by is None else f"a folder of {made_by.get('stage')}"
        raise ValueError(f"{folder} holds no answer that was taken apart, it is {what}: mmfast decompose writes them")
    for row in current(Path(folder), made_by, []):
        source = f"{folder}:{row['key'][:12]}"
        try:
            yield Decomposed(
                answer_key=row["answer_key"],
                row=row["row"],
                source=source,
                images=tuple(row["images"]),
                items=tuple(Item.of(item) for item in row["items"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{source} is no row of items ({why}): mmfast decompose writes them") from None
