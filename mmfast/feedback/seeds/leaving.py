"""What the writers of the seeds' files are given, and what they give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.feedback.answer import Answer
from mmfast.feedback.compared import Verdict


@dataclass(kw_only=True)
class Leaving:
    out: Path
    answers: list[Answer]
    named: Callable[[Any], str]  # what an image is called in the file
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of decompose, by the answer's key
    found: Callable[[Answer, dict[str, Any]], dict[str, Any] | None] = lambda one, item: None  # check's row of an item
    compared: list[Verdict] = field(default_factory=list)  # of critique
    lost: Counter[str] = field(default_factory=Counter)  # what the file has no place for -> how often

    def image(self, one: Answer) -> str | None:
        """The first image; these files have one."""
        self.lost["images after the first"] += len(one.images) > 1
        return self.named(one.images[0]) if one.images else None

    def question(self, one: Answer) -> str:
        """The last question; these files have one turn."""
        self.lost["system prompts and earlier turns"] += len(one.prompt) > 1
        return one.question


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A file of a seed's pipeline."""

    suffixes: tuple[str, ...]
    about: str
    write: Callable[[Leaving], Iterator[dict[str, Any]]]  # rows; of a pickle {"key", "value"}
    needs: tuple[str, ...] = ()  # "items", "verdicts", "compared"
