"""Experts: each says of items whether an image shows them. What they share; which one is asked is a table's to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmfast.engines.base import Picture
from mmfast.feedback.expert_scores import WHOLE_IMAGE
from mmfast.feedback.items import Item

TRUE, FALSE, OPEN, UNSEEN = 1, -1, 0, -2  # verdicts: OPEN: cannot be judged; UNSEEN: what it is about is not there


@dataclass(frozen=True, kw_only=True)
class Verdict:
    value: int = OPEN
    p_yes: float | None = None
    question_ok: bool | None = None  # None: the question was not looked at
    evidence: dict[str, Any] = field(default_factory=dict)
    error: str = ""  # there is no verdict


@dataclass(frozen=True, kw_only=True)
class Case:
    """Items of one image (or of the images of one answer), and the names of all things that any item of it is about,
    checked now or not: some detectors see names by their neighbours."""

    images: tuple[Picture, ...]
    items: tuple[Item, ...]
    names: tuple[str, ...] = ()
    whole: frozenset[str] = WHOLE_IMAGE  # words for the image itself


class Expert(Protocol):
    kinds: frozenset[str]  # that it can check

    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on, by name."""

    def check(self, cases: Sequence[Case]) -> Iterator[list[Verdict]]:
        """The verdicts of each case's items, in order."""


@dataclass(frozen=True)
class Passed:
    good: bool
    score: float = 0.0
    error: str = ""  # it could not be looked at


class Filter(Protocol):
    """Says whether questions are good enough to be asked."""

    def identity(self) -> dict[str, Any]: ...

    def passed(self, questions: Sequence[str]) -> list[Passed]: ...


def names_of(item: Item, whole: frozenset[str]) -> tuple[str, ...]:
    """The things that an item is about. `whole`: words for the image itself, which is no thing in it."""
    at = {"object": (0,), "count": (1,), "attribute": (1,), "scale": (1,), "relation": (0, 2), "spatial": (0, 2)}
    named = [item.args[n] for n in at.get(item.kind, ()) if n < len(item.args)]
    return tuple(name for name in named if name.lower() not in whole)
