"""What a published data set gives to a set of prompts, and how it is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.images.index import image_bytes, is_path, unwrapped
from mmfast.data.problems import BadRow, Problem, pass_over

INSIDE = "sha256:"  # how an image that lies inside a row is called until it is drawn
VISUAL_GENOME = ("{}", "VG_100K/{}", "VG_100K_2/{}")  # where its images lie under a root


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An image (or several), and what is asked about it where the data set has a question."""

    images: tuple[str, ...]  # as the data set names them; those inside a row by their digest
    places: tuple[str, ...] = ()  # where a single image may lie under the root; default: its name
    asked: Any = ""  # a text, or messages; "": what is asked comes from lines
    answer: str = ""  # the true one, where there is one
    id: str = ""  # where the data set numbers its images: DGPref's index
    more: dict[str, Any] = field(default_factory=dict)  # further columns of a prompt's row


@dataclass(kw_only=True)
class Taking:
    """How a data set is read, and what is told of it."""

    root: Path  # of image paths
    turns: str = "first"  # of a conversation: the first question, or all, each asked alone
    rows: tuple[int, int | None] = (0, None)  # [from, to) of those that are read, counted from 0
    problems: list[Problem] | None = None  # bad rows are listed here; None: the first one raises
    left: Counter[str] = field(default_factory=Counter)  # why rows give no prompt -> how many
    keep: Callable[[str, bytes], None] | None = None  # is given the name and bytes of every image inside a row

    def wanted(self, number: int) -> bool:
        return self.rows[0] <= number and (self.rows[1] is None or number < self.rows[1])

    def named(self, images: Iterable[Any]) -> tuple[str, ...]:
        """The images of a row by name: bytes are not held, since a data set may have tens of gigabytes of them."""
        return tuple(self._named(unwrapped(image)) for image in images)

    def _named(self, image: Any) -> str:
        if is_path(image):
            return image
        data, _ = image_bytes(image, self.root)
        name = INSIDE + hashlib.sha256(data).hexdigest()
        if self.keep is not None:
            self.keep(name, data)
        return name

    def each(self, rows: Iterable[Row], make: Callable[[Row], Iterable[Found]]) -> Iterator[Found]:
        """What the wanted rows make; anything that a row can get wrong makes it a bad one."""
        for number, row in enumerate(rows):
            if not self.wanted(number):
                if self.rows[1] is not None and number >= self.rows[1]:
                    return
                continue
            try:
                if isinstance(row.value, BadRow):
                    raise row.value
                made = list(make(row))
            except BadRow as error:
                pass_over(row.source, error, self.problems)
            except (KeyError, TypeError, AttributeError) as error:
                bad = BadRow("format", f"the row is not of this kind ({type(error).__name__}: {error})")
                pass_over(row.source, bad, self.problems)
            else:
                yield from made


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    looks_for: str  # what its first row is told by
    accepts: Callable[[dict[str, Any]], bool]
    read: Callable[[Path, Iterator[Row], Taking], Iterator[Found]]
    asks: bool  # it has questions of its own; else its images are asked by lines
    turns: bool = False  # it has conversations


def text_in(value: Any, name: str) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        told = (
            f"is a {type(value).__name__}, not a text"
            if value is not None and not isinstance(value, str)
            else "is empty"
        )
        raise BadRow("format", f"the {name} {told}")
    return value.strip()
