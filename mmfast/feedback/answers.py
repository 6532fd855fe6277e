"""Answers: the table that every stage of feedback reads. They come from folders of `mmfast generate`, `judge` and
`grade` (folders.py), from files of rows (tables.py), and from the files of the seeds' own pipelines (seeds)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row, data_files, iterate
from mmfast.data.problems import BadRow, Problem
from mmfast.feedback import folders
from mmfast.feedback.answer import Answer, Claim, grouped, read_claims
from mmfast.feedback.reading import Reading, manifest_of
from mmfast.feedback.seeds import dgpref, rlaifv, sima
from mmfast.feedback.tables import Table

__all__ = ["Answer", "Claim", "answers_of", "grouped", "read_answers", "read_claims"]
REFERENCE = "reference"  # a name of --answer: the true answer instead of the model's


def read_answers(
    path: str | Path,
    *,
    images: str | Path = "",
    whole: bool = True,
    answer: str = "",
    questions: str | Path | None = None,
    answers: str | Path | None = None,
    options: dict[str, Any] | None = None,
    problems: list[Problem] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Answer]:
    """Every answer once, in the input's order.

    images     the root of a file's relative paths, beside it by default
    whole      image paths are made whole; else they stay as a file has them
    answer     a column of the file, or "reference": the true answers in the answers' places
    questions  a file of what was asked, joined by id
    answers    what a folder of judge names by keys: a folder or file; by default its input, beside it
    options    of DGPref's files: prompts, names, image
    problems   bad rows are listed here and passed over; None: the first one raises
    notes      what else is told is put here
    """
    path = Path(path)
    reading = Reading(
        root=Path(images) if images else path if path.is_dir() else path.parent,
        whole=whole,
        answer="" if answer == REFERENCE else answer,
        questions=Path(questions) if questions else None,
        answers=Path(answers) if answers else None,
        options=options or {},
        problems=problems,
        notes=[] if notes is None else notes,
    )
    found = _read(path, reading)
    return _references(found, reading) if answer == REFERENCE else found


def _read(path: Path, reading: Reading) -> Iterator[Answer]:
    manifest = manifest_of(path)
    if manifest is None:
        return _of_file(path, reading)
    if reading.answer or reading.questions:
        option = "--answer" if reading.answer else "--questions"
        raise ValueError(f"{option} is for files of answers, and {path} is a folder of {manifest.get('stage')}")
    return folders.answers(path, manifest, reading, lambda: answers_of(path, reading))


def answers_of(folder: Path, reading: Reading) -> Iterator[Answer]:
    """The answers that a folder's rows are about: those that are given, or the input that its manifest names, beside
    the folder."""
    named = str((manifest_of(folder) or {}).get("input") or "").partition(", ")[0]  # what else is told is not its name
    path = reading.answers or (folder.parent / named if named else None)
    if path is None or not path.exists():
        was = f" (its manifest names {named}, which is not beside it)" if named else ""
        raise ValueError(f"{folder} names answers by their keys{was}: give them with --answers FOLDER_OR_FILE")
    images = reading.root if reading.answers is not None and manifest_of(path) is None else ""
    told: dict[str, Any] = {"problems": reading.problems, "notes": reading.notes}
    return read_answers(path, images=images, whole=reading.whole, options=reading.options, **told)


def _of_file(path: Path, reading: Reading) -> Iterator[Answer]:
    """The answers of a file, whichever of the known tables it is: its first good row tells."""
    try:
        data_files(path)
    except ValueError as error:
        raise ValueError(f"{path} is no folder of answers (mmfast generate writes one), and no file: {error}") from None
    rows = iterate(path)
    begin: list[Row] = []
    for row in rows:
        begin.append(row)
        if not isinstance(row.value, BadRow):
            break
    first = begin[-1].value if begin else None
    kinds = {module: module.kind_of(first) for module in (rlaifv, sima, dgpref)} if isinstance(first, dict) else {}
    module: Any = next((module for module, kind in kinds.items() if kind), None)
    table, everything = Table(reading), chain(begin, rows)
    if module is None:
        yield from table.each(everything, table.plain)
    else:
        yield from module.answers(everything, kinds[module], table)
    table.end()


def _references(answers: Iterator[Answer], reading: Reading) -> Iterator[Answer]:
    """The true answers instead. What was cut, scored and judged was the model's own."""
    for one in answers:
        if one.reference:
            yield replace(one, text=one.reference, finish="stop", scores={}, claims=None)
        else:
            reading.bad(one.source, BadRow("reference", "no reference answer came with it"))
