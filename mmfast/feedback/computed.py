"""Folders of stages that ask no engine: their rows are computed, and written whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.engines.stage import MANIFEST, compare
from mmfast.feedback.reading import manifest_of
from mmfast.files import whole, write_json

ROWS = "rows-0.jsonl"


@dataclass(kw_only=True)
class Done:
    """What became of everything."""

    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [f"{number} {name}" for name, number in self.counts.items() if number] + self.notes


def write_folder(out: Path, made_by: dict[str, Any], made: Iterable[dict[str, Any]], done: Done) -> None:
    """The rows, then the manifest that says that they are whole. A folder made by other settings is refused."""
    before = manifest_of(out)
    if before is not None and (differences := compare(before, made_by)):
        raise ValueError(f"{out} was made otherwise: {'; '.join(differences)}. Give another --out, or its settings")
    if before is None and any(out.glob("rows-*.jsonl")):
        raise ValueError(f"{out} has rows, but no {MANIFEST} that says what made them: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / ROWS, durable=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    complete = not any("not complete" in note for note in done.notes)
    write_json(out / MANIFEST, {**made_by, "complete": complete, "counts": dict(done.counts)})
