"""metrics.jsonl and samples.jsonl as rows of steps: read, and cut back to the step that a run goes on from."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmfast.files import write_bytes

FILES = ("metrics.jsonl", "samples.jsonl")


def cut_back(folder: Path, step: int, *, evaluated: bool = True, aside: Path | None = None) -> None:
    """Drop what a run wrote after `step`, the checkpoint it resumes from: from the first later or damaged line on. Not
    `evaluated`: also the evaluation of `step`, which is made again. `aside`: the folder that gets the dropped lines."""
    for name in FILES:
        path = folder / name
        if not path.exists():
            continue
        lines = path.read_bytes().splitlines(keepends=True)
        rows = list(takewhile(lambda row: row is not None and row["step"] <= step, map(_row, lines)))
        end = len(rows)
        keep = [i for i, row in enumerate(rows) if row and (evaluated or row["step"] < step or not _of_evaluation(row))]
        if len(keep) == len(lines):
            continue
        if aside is not None:
            aside.mkdir(exist_ok=True)
            (aside / name).write_bytes(b"".join(lines[end:]))
        write_bytes(path, b"".join(lines[i] for i in keep))


def last_whole_step(folder: Path) -> tuple[int, str]:
    """(step of the last row before the first damaged one, what is damaged); ("" and 0 where nothing is). A last line
    that a kill cut off is no damage."""
    damages: list[tuple[int, str]] = []
    for name in FILES:
        path, step = folder / name, 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
            row = _row(line)
            if row is None and line.endswith(b"\n"):
                damages.append((step, f"{path} line {number} is damaged"))
            if row is None:
                break
            step = row["step"]
    return min(damages, default=(0, ""))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl or samples.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        row = _row(line)
        if row is None and line.endswith(b"\n"):
            raise ValueError(f"{path} line {number} is damaged: repair or remove it")
        if row is not None:
            rows.append(row)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """None: damaged, or cut off by a kill."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) and line.endswith(b"\n") else None


def _of_evaluation(row: dict[str, Any]) -> bool:
    return "answer" in row or any(name.startswith("eval/") for name in row)
