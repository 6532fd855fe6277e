"""Answers: the table that every stage of feedback reads. A row is one answer to a prompt about images; those of one
group compete. Read from a folder that `mmfast generate` wrote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from mmfast.data.text.templates import text_of
from mmfast.engines.stage import MANIFEST, rows


@dataclass(frozen=True, kw_only=True)
class Answer:
    key: str  # names it in the rows of later stages
    row: int  # of the input: later stages keep its order
    source: str  # for messages
    group: str
    prompt_id: str = ""
    images: tuple[str, ...] = ()  # whole paths, in the order of their parts
    prompt: tuple[dict[str, Any], ...] = ()  # messages; the last is the user's
    text: str = ""
    sample: int = 0
    decode: str = ""
    finish: str = "stop"  # "length": cut
    scores: dict[str, float] = field(default_factory=dict)  # the only numbers that answers may be ranked by
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the last question."""
        return text_of(self.prompt[-1]).strip()

    @property
    def reference(self) -> str:
        """A true answer that came with the prompt; empty if none did."""
        return str(self.meta.get("reference") or "")


def read_answers(path: str | Path) -> Iterator[Answer]:
    """Every answer once, in the input's order."""
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{path} is no folder of answers: it has no {MANIFEST} (mmfast generate writes one)")
    for row in rows(folder):
        yield Answer(
            key=row["key"],
            row=row["row"],
            source=f"{folder}:{row['key'][:12]}",
            group=row["group"],
            prompt_id=row.get("prompt_id", ""),
            images=tuple(os.path.abspath(folder / name) for name in row["images"]),
            prompt=tuple(row["prompt"]),
            text=row["answer"],
            sample=row.get("sample", 0),
            decode=row.get("decode", ""),
            finish=row.get("finish", "stop"),
            scores=row.get("scores", {}),
            meta=row.get("meta", {}),
        )


def grouped(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """The answers of each group, in the order of its first one. Rows of a group stand together in a folder of answers,
    except where one prompt was asked in several rows: then the group comes back, and is put together here."""
    found: dict[str, list[Answer]] = {}
    for group, some in groupby(answers, key=lambda answer: answer.group):
        found.setdefault(group, []).extend(some)
    yield from found.values()
