"""Which of COCO's objects a text mentions, and which objects an image has: what CHAIR and Object HalBench share.

Each published script reads words in its own way; a flavour is one of them. The list of synonyms comes from the user:
a line a class, its name first. Names may be two words, which only some flavours join.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmfast.data.containers.pickles import load_pickle_bytes
from mmfast.evals.text import words
from mmfast.evals.text.lemmas import singular

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
VEHICLES = ("jet", "train")
# Two words that the original takes for one, whatever the synonyms say. No word of the last two counts
JOINED = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "bow tie", "laptop computer", "stove top oven", "home plate", "train track"),
)

READING = "# reading: "  # the first line of a table that says by whose reading of captions it was made
PUBLISHED = ("ce0d6254234b5c06", "01af3dc5ffaa0410")  # digests of the names in the original list, in RLHF-V's


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a script reads words."""

    way: str  # of taking the singular (text/lemmas.py)
    joins: str  # which two words are one: "fixed" ones, those of the "list" and two more, "none"
    stripped: bool  # blanks around a name go; else a name after two blanks is never met
    young: bool = False  # animals and vehicles are classes of their own ("cub", "jet"), which no image ever has


READINGS = {
    "original": Reading(way="pattern", joins="fixed", stripped=False),
    "sima": Reading(way="wordnet", joins="fixed", stripped=False),
    "dgpref": Reading(way="inflect", joins="none", stripped=False, young=True),
    "objhal": Reading(way="wordnet", joins="list", stripped=True),
}


class Vocabulary:
    """The words that count, as one reading has them."""

    def __init__(self, synonyms: str, reading: str) -> None:
        self.how = READINGS[reading]
        rows = [line.strip().split(", ") for line in synonyms.splitlines() if line.strip()]
        if self.how.stripped:
            rows = [[name.strip() for name in row] for row in rows]
        self.classes = {name: row[0] for row in rows for name in row}
        if len(rows) < 2 or any(not row[0] for row in rows):
            raise ValueError("the list of synonyms must have a line for each class: its name, then others")
        if self.how.young:
            self.classes |= {name: name for name in (*ANIMALS, *VEHICLES)}
        self.joined = self._joined()
        words_of = hashlib.sha256("\n".join(sorted(n.strip() for row in rows for n in row)).encode()).hexdigest()
        self.published = words_of[:16] in PUBLISHED

    def _joined(self) -> dict[str, str]:
        """Two words -> what stands for them. "baby bird" is a bird and no person."""
        if self.how.joins == "none":
            return {}
        names = JOINED if self.how.joins == "fixed" else (*(n for n in self.classes if " " in n), *JOINED[-2:])
        out = {name: name for name in names}
        out |= {f"{age} {name}": name for name in ANIMALS for age in ("baby", "adult")}
        out |= {f"passenger {name}": name for name in VEHICLES}
        return out | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}

    def mentions(self, text: str) -> list[tuple[str, str]]:
        """(word, class) of each mention, repeats kept, in their order."""
        return self.known(self.join([singular(word, self.how.way) for word in words(text.lower())]))

    def join(self, tokens: list[str], only: bool = False) -> list[str]:
        """Two words that are one become one. `only`: nothing else is given."""
        out, at = [], 0
        while at < len(tokens):
            pair = " ".join(tokens[at : at + 2])
            if pair in self.joined:
                out.append(self.joined[pair])
            elif not only:
                out.append(tokens[at])
            at += 2 if pair in self.joined else 1
        return out

    def known(self, tokens: list[str]) -> list[tuple[str, str]]:
        """Those that have a class; the seat of a toilet is no chair."""
        seats = "toilet" in tokens and "seat" in tokens
        return [(t, self.classes[t]) for t in tokens if t in self.classes and not (seats and t == "seat")]


def image_id(name: Any) -> str:
    """42 of 42, "42", "000000000042.jpg" and "COCO_val2014_000000000042.jpg"; another name is left as it is."""
    found = re.fullmatch(r"(?:.*[/_])?0*(\d+)(?:\.\w+)?", str(name))
    return found[1] if found else str(name)


def object_table(content: bytes, name: str, vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Image id -> its objects, as classes of the list. Read are JSON {image id: [objects]}, scene graphs {image id:
    {"objects": {id: {"name"}}}}, a pickle {image id: set} (plain data only), and the compact text that
    `mmfast eval chair-table` writes: a line of classes, then an image a line with its classes' places."""
    content = _plain(content)
    try:
        if content[:1] == b"{":
            table = json.loads(content)
        elif content[:1] == b"\x80":
            table = load_pickle_bytes(content)
        else:
            table = _compact(content.decode())
    except (ValueError, IndexError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{name} is no table of objects that can be read: {error}") from None
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"{name} is no table of objects: it must be {{image id: [objects]}}")
    known = frozenset(vocabulary.classes.values())
    return {image_id(key): _objects(value, f"{name}, image {key}", vocabulary, known) for key, value in table.items()}


def reading_of(content: bytes) -> str:
    """Whose way to read captions a table of `mmfast eval chair-table` was made by; "" where it does not say."""
    first = _plain(content).split(b"\n", 1)[0].decode(errors="replace")
    return first.removeprefix(READING) if first.startswith(READING) else ""


def _plain(content: bytes) -> bytes:
    return lzma.decompress(content) if content[:6] == b"\xfd7zXZ\0" else content


def _compact(text: str) -> dict[str, list[str]]:
    first, *rows = (line for line in text.splitlines() if not line.startswith(READING))
    classes, parts = first.split(","), [row.split(" ") for row in rows if row.strip()]
    return {key: [classes[int(place)] for place in places.split(",") if place] for key, places in parts}


def _objects(value: Any, where: str, vocabulary: Vocabulary, known: frozenset[str]) -> frozenset[str]:
    if isinstance(value, Mapping):  # an image of a scene graph: its names are words of anybody
        try:
            names = [singular(each["name"], vocabulary.how.way) for each in value["objects"].values()]
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f'{where}: a scene graph has "objects", each with a "name"') from None
        return frozenset(found for _, found in vocabulary.known(names))
    objects = frozenset(value)
    if not objects <= known:
        raise ValueError(f"{where}: {min(objects - known)!r} is no class of the list of synonyms")
    return objects


def objects_of(table: Mapping[str, frozenset[str]], ids: Iterable[str], what: str) -> None:
    """Refuse images that the table does not have."""
    lost = [each for each in ids if each not in table]
    if lost:
        listed = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise ValueError(f"{what} has no image {listed}: these captions cannot be scored with it")
