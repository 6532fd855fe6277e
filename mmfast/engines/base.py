"""What an engine is: it is given requests and gives replies, in any order, as they are ready.

Nobody who asks knows which engine answers: the packed model, transformers' own generation, a server, the embedded
world's annotation, or a record of earlier answers. What one cannot do it does not list in `can`; it is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

# What an engine may be able to do beside greedy text
ABILITIES = (
    "sample",  # temperature, top_p, top_k, min_p
    "repetition_penalty",
    "beams",
    "stop",  # stop strings
    "labels",  # log-probs of given continuations
    "score",  # the log-prob of a finished answer
    "constraint",
    "logp",  # the answer's own log-prob
    "prefix",  # a last assistant message is continued
    "images",
)
Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class Decode:
    """How an answer is drawn. Always complete: no default of a model's own generation_config leaks in."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, told in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0: off)"),
            ("min_p", 0 <= self.min_p < 1, "from 0 to below 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("beams", self.beams >= 1, "at least 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to below 2^63"),
            ("stop", all(self.stop), "texts that are not empty"),
        ):
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)!r}: it must be {told}")
        if self.beams > 1 and self.temperature:
            raise ValueError(f"beams = {self.beams} searches, temperature = {self.temperature} draws: choose one")
        if not self.temperature and (self.top_p, self.top_k, self.min_p) != (1.0, 0, 0.0):
            raise ValueError("top_p, top_k and min_p cut what is drawn from: they need a temperature above 0")

    @property
    def needs(self) -> set[str]:
        """The abilities that this takes."""
        taken = {
            "sample": self.temperature > 0,
            "repetition_penalty": self.repetition_penalty != 1,
            "beams": self.beams > 1,
            "stop": bool(self.stop),
        }
        return {name for name, needed in taken.items() if needed}


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What an answer must look like: one of some texts, a regular expression, or a JSON schema."""

    choice: tuple[str, ...] = ()
    regex: str = ""
    schema: str = ""  # JSON text

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name)]
        if len(given) != 1:
            raise ValueError(f"a constraint is one of choice, regex and schema; given: {', '.join(given) or 'none'}")


@dataclass(frozen=True)
class Picture:
    """An image by its file, or by its bytes where it came inside a row; `source` is what rows call it."""

    source: str
    content: bytes | None = field(default=None, repr=False)

    @cached_property
    def data(self) -> bytes:
        return Path(self.source).read_bytes() if self.content is None else self.content

    @cached_property
    def id(self) -> str:
        """sha256 of its bytes: equal files are one image."""
        return hashlib.sha256(self.data).hexdigest()

    @classmethod
    def named(cls, source: str, id: str) -> Picture:
        """Its bytes were read for its name, and are not held."""
        picture = cls(source)
        vars(picture)["id"] = id  # what the cached property would find
        return picture


@dataclass(frozen=True, kw_only=True)
class About:
    """A request's content as data, for who answers without reading prompts: the world's annotation, a person's page.
    Models see the messages alone."""

    task: str  # "prefer", "rate", ...: what kind of verdict `say` takes
    say: Callable[[Any], str]  # a verdict in the form that the asking stage reads
    question: str = ""
    answers: tuple[str, ...] = ()  # in the order in which they are shown
    more: Mapping[str, Any] = field(default_factory=dict)  # what else the task needs


@dataclass(frozen=True, kw_only=True)
class Request:
    """`messages` in TRL's form: {"role", "content": a text or a list of text and image parts}, images in the order of
    their parts. A last message of the assistant is a beginning that the answer continues. `labels`: continuations whose
    log-prob is asked for; with n = 0 nothing is generated beside them. `scored`: the last message is a finished answer,
    whose own log-prob is asked for and nothing else: of the tokens that training scores, the end's among them."""

    key: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[Picture, ...] = ()
    n: int = 1
    decode: Decode = Decode()
    labels: tuple[str, ...] = ()
    constraint: Constraint | None = None
    scored: bool = False
    about: About | None = field(default=None, compare=False, repr=False)  # not part of its key

    def __post_init__(self) -> None:
        if self.scored and (self.n or self.labels or not self.messages or self.messages[-1]["role"] != "assistant"):
            raise ValueError(f"request {self.key}: a finished answer is scored by itself, as the last message")
        if self.n < 0 or (self.n == 0 and not self.labels and not self.scored):
            raise ValueError(f"request {self.key}: n = {self.n}, and there are no labels: nothing is asked for")
        if not self.messages or self.messages[-1]["role"] not in ("user", "assistant"):
            raise ValueError(f"request {self.key}: its last message must be the user's (or the answer's beginning)")
        if self.n > 1 and not self.decode.temperature:
            raise ValueError(f"request {self.key}: n = {self.n} greedy answers are all the same: give a temperature")

    @property
    def needs(self) -> set[str]:
        own = {
            "labels": bool(self.labels),
            "constraint": self.constraint is not None,
            "score": self.scored,
            "prefix": self.messages[-1]["role"] == "assistant" and not self.scored,
            "images": bool(self.images),
        }
        return self.decode.needs | {name for name, needed in own.items() if needed}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. A request of n samples gets n replies; one with n = 0 gets one, with its labels' log-probs, or with
    `tokens` and `logp` of the answer that it scored."""

    key: str
    sample: int = 0
    text: str = ""
    tokens: int = 0  # generated, the end token included
    logp: float | None = None  # sum over the generated tokens, at temperature 1
    finish: Finish = "stop"
    labels: dict[str, float] = field(default_factory=dict)
    bounded: tuple[str, ...] = ()  # labels that a server did not show: their value is what they are at most
    error: str = ""


class Engine(Protocol):
    can: frozenset[str]

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, by name: for manifests and keys."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Replies in any order, as they are ready. What is wrong with one request is its reply's error; what is wrong
        with the engine raises."""


def refuse(engine: Engine, request: Request) -> str:
    """Why this engine cannot answer a request; empty if it can."""
    missing = sorted(request.needs - engine.can)
    return (
        f"this engine has no {', '.join(missing)} (it has {', '.join(sorted(engine.can)) or 'none'})" if missing else ""
    )


def canonical(value: Any) -> str:
    """JSON of one spelling, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def key_of(*, stage: str, version: int, engine: dict[str, Any], request: Request, template: str = "") -> str:
    """Names what a stage makes of a request: all that makes the answer, but not where its images lie or how often it is
    asked for. A row is named by this and its sample's number."""
    parts: dict[str, Any] = {
        "stage": [stage, version],
        "engine": engine,
        "images": [picture.id for picture in request.images],
        "messages": list(request.messages),
        "decode": asdict(request.decode),
        "labels": list(request.labels),
        "constraint": None if request.constraint is None else asdict(request.constraint),
        "template": template,
    }
    parts |= {"scored": True} if request.scored else {}  # keys of before there were such requests stay
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
