"""Prompts are data: a TOML file holds what is said to a critic, a judge or an expert, and how its reply is read.

version = 1                     # raised with the wording; the digest of the file is in every row's key anyway
about = "..."                   # one line
parser = "verdict"              # a name in the stage's table of parsers
slots = ["question", "a", "b"]  # each stands in the text as {question}; other braces are plain text
optional = ["truth"]            # may be left empty: the paragraphs (between blank lines) that have it are left out
image = "first"                 # "first", "last" (a server may cache the text before it) or "none"
labels = { a = "1", b = "2" }   # where the reply is read as labels: meaning -> continuation
opening = "Better:"             # the beginning of the answer, which a reply or a label continues
system = ""
text = "What is asked: {question} ..."
[[demonstrations]]              # earlier turns, without an image: values of the slots, and the reply
question = "..."
reply = "..."
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FOLDER = Path(__file__).with_name("prompts")


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
    system: str = ""
    text: str
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
        said: list[dict[str, Any]] = []
        if self.wording.system:
            said.append({"role": "system", "content": self.wording.system})
        for shown in self.wording.demonstrations:
            said.append({"role": "user", "content": self.filled({k: v for k, v in shown.items() if k != "reply"})})
            said.append({"role": "assistant", "content": _joined(self.wording.opening, shown["reply"])})
        pictures = [{"type": "image"}] * (0 if self.wording.image == "none" else images)
        text = [{"type": "text", "text": self.filled(given)}]
        said.append({"role": "user", "content": text + pictures if self.wording.image == "last" else pictures + text})
        if self.wording.opening:
            said.append({"role": "assistant", "content": self.wording.opening})
        return tuple(said)

    def filled(self, given: dict[str, str]) -> str:
        """The text with its slots filled, each once: what stands in an answer is never taken for a slot."""
        names = {*self.wording.slots, *self.wording.optional}
        if unknown := sorted(given.keys() - names):
            raise ValueError(f"prompt {self.name}: it has no slot {unknown[0]} (its slots: {', '.join(sorted(names))})")
        if missing := [name for name in self.wording.slots if name not in given]:
            raise ValueError(f"prompt {self.name}: its slot {missing[0]} was given no text")
        empty = [name for name in self.wording.optional if not given.get(name)]
        paragraphs = [p for p in self.wording.text.split("\n\n") if not any(f"{{{name}}}" in p for name in empty)]
        pattern = "|".join(re.escape(f"{{{name}}}") for name in names) or "(?!)"
        return re.sub(pattern, lambda found: given[found[0][1:-1]], "\n\n".join(paragraphs)).strip()


def _joined(opening: str, reply: str) -> str:
    return f"{opening} {reply}".strip() if opening and not opening.endswith(("[", "(", '"')) else opening + reply


def known() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def prompt(name: str, *, parsers: Any = None) -> Prompt:
    """The prompt of that name, or of a file of one's own. `parsers`: the names that its stage knows."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
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
    return made


def _check(path: Path, made: Prompt, parsers: Any) -> None:
    """What can be said to be wrong with a file before anything is asked."""
    wording = made.wording
    for name in (*wording.slots, *wording.optional):
        if f"{{{name}}}" not in wording.text:
            raise ValueError(f"{path}: its text has no {{{name}}}, which is one of its slots: put it in")
    if parsers is not None and wording.parser not in parsers:
        raise ValueError(f"{path}: there is no parser {wording.parser!r} here (there are {', '.join(sorted(parsers))})")
    for number, shown in enumerate(wording.demonstrations, 1):
        if "reply" not in shown:
            raise ValueError(f"{path}: demonstration {number} has no reply")
        made.filled({k: v for k, v in shown.items() if k != "reply"})
