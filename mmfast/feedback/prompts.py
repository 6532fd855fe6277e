"""Prompts are data: a TOML file holds what is said to a critic, a judge or an expert, and how its reply is read.

version = 1                     # raised with the wording; the digest of the file is in every row's key anyway
about = "..."                   # one line
parser = "verdict"              # a name in the stage's table of parsers
slots = ["question", "a", "b"]  # each stands in the text as {question}; other braces are plain text
optional = ["truth"]            # may be left empty: the paragraphs (between blank lines) that have it are left out
image = "first"                 # "first", "last" (a server may cache the text before it) or "none"
labels = { a = "1", b = "2" }   # where the reply is read as labels: meaning -> continuation
opening = "Better:"             # the beginning of the answer, which a reply or a label continues
label_opening = "Verdict: [["   # another beginning, where the reply is read as labels
flat = false                    # true: what fills a slot loses its line breaks, as SIMA's critic has it
system = ""
text = "What is asked: {question} ..."
demonstration = "..."           # how one is written inside the text, at {demonstrations}, with its {reply}; without
                                # it they are earlier turns, before the image
each = "Answer {number}: ..."   # how one of several answers is written, where the stage fills a slot with many
low, high, metrics = ...        # what is rated: {low}, {high}, and {metrics}: a line "name: meaning" each
[[demonstrations]]              # without an image: values of the slots, and the reply
question = "..."
reply = "..."
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmfast.packages import tomllib

FOLDER = Path(__file__).with_name("prompts")
PLACES = ("demonstrations", "metrics", "low", "high")  # in a text, beside its slots


class Wording(BaseModel):
    """A file's content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=1)
    about: str
    parser: str
    slots: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    image: Literal["first", "last", "none"] = "first"
    labels: dict[str, str] = {}
    opening: str = ""
    label_opening: str = ""
    flat: bool = False
    system: str = ""
    text: str
    demonstration: str = ""
    each: str = ""
    low: int = 0
    high: int = 0
    metrics: dict[str, str] = {}
    demonstrations: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Prompt:
    name: str
    digest: str  # sha256 of the file
    wording: Wording

    @property
    def key(self) -> dict[str, Any]:
        """For manifests."""
        return {"name": self.name, "version": self.wording.version, "digest": self.digest}

    def messages(self, images: int = 1, /, **given: str) -> tuple[dict[str, Any], ...]:
        """What is said, with so many images (none where the prompt shows none)."""
        return self._said(images, self.wording.opening, given)

    def label_messages(self, images: int = 1, /, **given: str) -> tuple[dict[str, Any], ...]:
        """What is said where the reply is read as labels."""
        return self._said(images, self.wording.label_opening or self.wording.opening, given)

    def _said(self, images: int, opening: str, given: dict[str, str]) -> tuple[dict[str, Any], ...]:
        said: list[dict[str, Any]] = []
        if self.wording.system:
            said.append({"role": "system", "content": self._fill(self.wording.system, {})})
        for shown in () if self.wording.demonstration else self.wording.demonstrations:
            said.append({"role": "user", "content": self.filled({k: v for k, v in shown.items() if k != "reply"})})
            said.append({"role": "assistant", "content": _joined(self.wording.opening, shown["reply"])})
        pictures = [{"type": "image"}] * (0 if self.wording.image == "none" else images)
        text = [{"type": "text", "text": self.filled(given)}]
        said.append({"role": "user", "content": text + pictures if self.wording.image == "last" else pictures + text})
        if opening:
            said.append({"role": "assistant", "content": opening})
        return tuple(said)

    def filled(self, given: dict[str, str]) -> str:
        """The text with its slots filled, each once: what stands in an answer is never taken for a slot."""
        names = {*self.wording.slots, *self.wording.optional}
        if unknown := sorted(given.keys() - names):
            raise ValueError(f"prompt {self.name}: it has no slot {unknown[0]} (its slots: {', '.join(sorted(names))})")
        if missing := [name for name in self.wording.slots if name not in given]:
            raise ValueError(f"prompt {self.name}: its slot {missing[0]} was given no text")
        return self._fill(self.wording.text, given)

    def _fill(self, text: str, given: dict[str, str]) -> str:
        wording = self.wording
        if wording.flat:
            given = {k: v if k == "reply" else v.replace("\n", "") for k, v in given.items()}
        # Paragraphs about what there is not
        empty = [name for name in wording.optional if not given.get(name)]
        text = "\n\n".join(p for p in text.split("\n\n") if not any(f"{{{name}}}" in p for name in empty))
        # The places beside the slots
        if "{demonstrations}" in text:
            shown = [self._fill(wording.demonstration, one) for one in wording.demonstrations]
            given = given | {"demonstrations": "\n\n".join(shown)}
        given = given | {"low": str(wording.low), "high": str(wording.high)} if wording.metrics else given
        given = given | {"metrics": "\n".join(f"{name}: {meaning}" for name, meaning in wording.metrics.items())}
        pattern = "|".join(re.escape(f"{{{name}}}") for name in given) or "(?!)"
        return re.sub(pattern, lambda found: given[found[0][1:-1]], text).strip()

    def listed(self, texts: Iterable[str]) -> str:
        """Several answers for one slot, numbered from 1."""
        written = []
        for number, text in enumerate(texts, 1):
            shown = {"number": str(number), "answer": text.replace("\n", "") if self.wording.flat else text}
            parts = re.split(r"\{(number|answer)\}", self.wording.each)
            written.append("".join(shown[part] if n % 2 else part for n, part in enumerate(parts)))
        return "\n\n".join(written)


def _joined(opening: str, reply: str) -> str:
    return f"{opening} {reply}".strip() if opening and not opening.endswith(("[", "(", '"')) else opening + reply


def place(name: str) -> Path:
    """Where a prompt of that name lies, or a file of one's own."""
    return Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"


def known() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def prompt(name: str, *, parsers: Any = None, needs: Iterable[str] = (), offers: Iterable[str] = ()) -> Prompt:
    """The prompt of that name, or of a file of one's own. `parsers`: the names that its stage knows; `needs`: the slots
    that it must have; `offers`: the others that the stage can fill (none given: any)."""
    path = place(name)
    if not path.is_file():
        near = get_close_matches(name, known(), 1)
        hint = f": did you mean {near[0]}?" if near else f" (there are {', '.join(known())}, or a path of a .toml file)"
        raise ValueError(f"there is no prompt {name}{hint}")
    content = path.read_bytes()
    try:
        wording = Wording(**tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    made = Prompt(path.stem, hashlib.sha256(content).hexdigest(), wording)
    _check(path, made, parsers)
    _check_slots(path, wording, list(needs), list(offers))
    return made


def _check(path: Path, made: Prompt, parsers: Any) -> None:
    """What can be said to be wrong with a file before anything is asked."""
    wording = made.wording
    for name in (*wording.slots, *wording.optional):
        if f"{{{name}}}" not in wording.text:
            raise ValueError(f"{path}: its text has no {{{name}}}, which is one of its slots: put it in")
        if name in (*PLACES, "reply"):
            raise ValueError(f"{path}: a slot cannot be called {name}: that place is filled from the file itself")
    if parsers is not None and wording.parser not in parsers:
        raise ValueError(f"{path}: there is no parser {wording.parser!r} here (there are {', '.join(sorted(parsers))})")
    # Demonstrations
    if bool(wording.demonstration) != ("{demonstrations}" in wording.text):
        raise ValueError(f"{path}: `demonstration` is how one is written at {{demonstrations}}: it needs both, or none")
    if wording.demonstration and "{reply}" not in wording.demonstration:
        raise ValueError(f"{path}: its demonstration has no {{reply}}: put it in")
    for number, shown in enumerate(wording.demonstrations, 1):
        if "reply" not in shown:
            raise ValueError(f"{path}: demonstration {number} has no reply")
        made.filled({k: v for k, v in shown.items() if k != "reply"})
    # What is rated
    if wording.metrics and wording.low >= wording.high:
        raise ValueError(f"{path}: metrics are rated from low = {wording.low} to high = {wording.high}: raise high")
    if wording.each and ("{answer}" not in wording.each or "{number}" not in wording.each):
        raise ValueError(f"{path}: `each` is one of several answers: it needs {{number}} and {{answer}}")


def _check_slots(path: Path, wording: Wording, needs: list[str], offers: list[str]) -> None:
    names = [*wording.slots, *wording.optional]
    if missing := [name for name in needs if name not in names]:
        raise ValueError(f"{path}: it has no slot {missing[0]}, which this stage needs: name it in slots and in text")
    if needs and (unknown := [name for name in names if name not in (*needs, *offers)]):
        raise ValueError(
            f"{path}: this stage cannot fill its slot {unknown[0]} (it fills {', '.join((*needs, *offers))})"
        )
