"""What a benchmark is: questions about pictures, how they are worded and answered, and what an answer is worth.

A benchmark is one file of `benches/`. It marks each answer with numbers that can be added up, and makes its metrics of
the sums; so the same few lines give a score, its interval and the difference of two models (intervals.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mmfast.engines.base import Decode, Picture, Reply


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item of a benchmark, as it is asked. Its turns are the user's, wording included; the first shows the images,
    which stand before its text."""

    id: str
    turns: tuple[str, ...]
    images: tuple[Picture, ...] = ()
    system: str = ""
    unit: str = ""  # what an interval resamples: its image; where it is empty, the question itself
    decode: Mapping[str, Any] = field(default_factory=dict)  # beside the wording's: a temperature of its category
    truth: Mapping[str, Any] = field(default_factory=dict)  # what marks look at
    official: Mapping[str, Any] = field(default_factory=dict)  # its names in official answer files: {"question_id": 7};
    # where it is empty, they call it by its id


@dataclass(frozen=True, kw_only=True)
class Answer:
    id: str
    turns: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)  # what else its row had

    @property
    def text(self) -> str:
        return self.turns[-1]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What one answer adds to the sums, and what a reader wants to know about it."""

    id: str
    unit: str
    sums: Mapping[str, float]
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that a benchmark needs from its user."""

    names: tuple[str, ...]  # of which one is looked for, patterns allowed
    what: str
    source: str  # where it is to be had
    licence: str
    optional: bool = False


class Data:
    """The user's folder of a benchmark: --data DIR, or DIR/NAME where that is there. What is read of it is recorded."""

    def __init__(self, folder: str | Path, bench: Benchmark, images: str | Path = "") -> None:
        home = Path(folder)
        if not home.is_dir():
            raise ValueError(f"--data {folder}: there is no such folder")
        self.bench, self.folder = bench, home / bench.name if (home / bench.name).is_dir() else home
        self.images = Path(images) if images else self.folder
        self.hashes: dict[str, str] = {}  # file name -> sha256 of what was read

    def path(self, role: str) -> Path | None:
        """The file of that role; None where it is optional and not there."""
        file = self.bench.files[role]
        found = sorted({path for name in file.names for path in self.folder.glob(name) if path.is_file()})
        if len(found) > 1:
            listed = ", ".join(path.name for path in found)
            raise ValueError(f"{self.folder}: {self.bench.name} needs one file of {file.what}, and there are {listed}")
        if not found:
            if file.optional:
                return None
            raise ValueError(
                f"{self.folder} has no {' or '.join(file.names)}: {self.bench.name} needs {file.what}, to be had from "
                f"{file.source} ({file.licence})"
            )
        return found[0]

    def read(self, role: str) -> bytes:
        """The content of a file that must be there; its hash becomes part of the result."""
        path = self.path(role)
        assert path is not None, f"{role} is optional: ask for its path first"
        content = path.read_bytes()
        self.hashes[path.name] = hashlib.sha256(content).hexdigest()
        return content

    def picture(self, name: str) -> Picture:
        """An image of --images (default: the data's folder), by the name that the benchmark has for it."""
        return Picture(str(self.images / name))


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A published way of asking: what follows the question, and how the answer is drawn."""

    suffix: str = ""
    decode: Decode = field(default_factory=lambda: Decode(max_tokens=1024))
    about: str = ""  # who asks so


@dataclass(frozen=True, kw_only=True)
class Call:
    """One question to a judge."""

    key: str
    messages: tuple[dict[str, Any], ...]
    decode: Decode
    labels: tuple[str, ...] = ()  # continuations whose log-prob is asked for (Request.labels)


class Judge(Protocol):
    """An engine that answers calls, with a record of its replies in front of it (judge.py)."""

    name: str
    made_by: dict[str, Any]  # its name and the digest of its engine's identity
    seed: int  # added to that of every call: each run of a judge has its own

    def ask(self, calls: Iterable[Call]) -> dict[str, Reply]:
        """The reply to each call, by its key; one that failed has an error."""


class JudgeNeeded(ValueError):
    """There is no judge, and the answers cannot be scored without one."""


@dataclass(kw_only=True)
class Scoring:
    """How answers are marked: given to the benchmark, which counts and notes in it what a reader must know."""

    data: Data
    flavour: str
    strict: bool = False  # our parser instead of the official one, with its defects
    judge: Judge | None = None
    own_prompt: bool = False  # set by the benchmark: the judge was asked in our words, not in the official ones
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # "unparsed", "empty", ...
    notes: list[str] = field(default_factory=list)
    judged: bool = False  # the judge was wanted

    def judged_by(self) -> Judge:
        self.judged = True
        if self.judge is None:
            raise JudgeNeeded(
                f"{self.data.bench.name} needs a judge: give --judge (officially {self.data.bench.judge})"
            )
        return self.judge


Sums = Mapping[str, Any]  # name -> a number, or an array with one number a resample


class Benchmark:
    """A benchmark derives from this and fills in what it is; `benches/NAME.py` lists those it holds in BENCHES."""

    name: ClassVar[str]
    about: ClassVar[str]
    flavours: ClassVar[tuple[str, ...]] = ("official",)  # the first one is the default
    wordings: ClassVar[Mapping[str, Wording]] = {"official": Wording()}  # so too
    files: ClassVar[Mapping[str, File]] = {}
    judge: ClassVar[str] = ""  # the official judge, where one is needed
    judged: ClassVar[tuple[str, ...]] = ()  # the flavours that ask it, where not all do
    options: ClassVar[Mapping[str, str]] = {}  # --option NAME=VALUE: what each name is for
    parsers_differ: ClassVar[bool] = False  # a strict parser of our own stands beside the official one
    missing: ClassVar[str] = "refused"  # "wrong": the official script counts a question without an answer as wrong
    layout: ClassVar[str] = "llava"  # of its official answer files (layouts.py)
    less_is_better: ClassVar[tuple[str, ...]] = ()  # metrics of which the smallest is the best
    published: ClassVar[str] = ""  # figures and where they stand, for docs/evaluation.md

    def asks_judge(self, flavour: str) -> bool:
        return bool(self.judge) and (not self.judged or flavour in self.judged)

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        raise NotImplementedError

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        """What each answer is worth. A question without an answer is only given where `missing` is "wrong"."""
        raise NotImplementedError

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        """The figures, named as published, of the sums of all marks. Must work on arrays too (`ratio`)."""
        raise NotImplementedError

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """Files by their names that its server takes; none where nothing is sent to a server."""
        return {}

    def extra(self, marks: Sequence[Mark], scoring: Scoring) -> dict[str, float]:
        """Figures of all marks together that no sums tell: a fit, how runs of a judge differ."""
        return {}


def ratio(above: Any, below: Any, times: float = 1.0) -> Any:
    """times * above / below; 0 where there is nothing to divide by. Of numbers, or element by element."""
    if isinstance(above, np.ndarray) or isinstance(below, np.ndarray):
        return np.where(
            np.asarray(below) != 0, times * np.divide(above, np.where(np.asarray(below) != 0, below, 1)), 0.0
        )
    return times * above / below if below else 0.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures, and all that they depend on. Results whose `made_by` differ never share a table."""

    bench: str
    flavour: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95%, by a bootstrap over units
    marks: list[Mark] = field(repr=False)
    counts: dict[str, int]
    notes: list[str]
    made_by: dict[str, Any]  # data hashes, wording, template, decoding, weights, judge, parser
    strict: dict[str, float] = field(default_factory=dict)  # the metrics by our parser, where it differs
    more: list[list[Mark]] = field(default_factory=list, repr=False)  # of further runs of the judge

    @property
    def items(self) -> list[dict[str, Any]]:
        return [{"id": mark.id, "unit": mark.unit, **mark.sums, **mark.told} for mark in self.marks]
