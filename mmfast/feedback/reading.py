"""How answers are read: what every source of them is told, and how a folder of rows is told from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.data.problems import BadRow, Problem, pass_over
from mmfast.engines.stage import MANIFEST


@dataclass(kw_only=True)
class Reading:
    """How answers are read, and what is said about it."""

    root: Path  # of relative image paths
    whole: bool = True  # image paths are made whole; else they stay as rows have them
    answer: str = ""  # the column of the answer
    questions: Path | None = None  # a file of what was asked, joined by id
    answers: Path | None = None  # the answers that a folder's rows (or a seed's tables) are about
    options: dict[str, Any] = field(default_factory=dict)  # DGPref's: prompts, names, image
    problems: list[Problem] | None = None  # bad rows are listed here; None: the first one raises
    notes: list[str] = field(default_factory=list)  # what is told beside

    def bad(self, source: str, error: BadRow) -> None:
        pass_over(source, error, self.problems)


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of a folder of rows; None where it is none."""
    if not (path / MANIFEST).is_file():
        return None
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise ValueError(f"{path / MANIFEST} is damaged: it holds no JSON object")
    return manifest
