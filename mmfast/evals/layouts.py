"""Files of answers: our own, and the layout of each benchmark's official script, read (official.py writes them).

Which one a file has is seen by its content. Rows find their questions by the names that the benchmark's official files
have for them (Question.official), by the question's own id where there are none, and by their order where a file has
no names at all. A question that is answered twice, and an answer to no question, end it in one line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.data.containers.pickles import load_pickle
from mmfast.engines.shards import parsed
from mmfast.evals.base import Answer, Benchmark, Question

# Names of the column that holds the answer, in the order in which they are looked for
TEXTS = ("text", "answer", "response", "prediction", "output", "caption", "model_answer", "model_prediction", "pred")
VERSION = 1  # of our own files
ASKED = ("prompt", "question", "instruction")  # columns that repeat the question: they tell rows apart, loosely


@dataclass(frozen=True, kw_only=True)
class Found:
    """Answers as a file has them. `header`: of our own file; else empty, for nobody told what made them."""

    answers: dict[str, Answer]
    layout: str
    header: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer of a file, by whatever names it has there."""

    place: str
    names: Mapping[str, Any]
    turns: tuple[str, ...]


def header_of(path: str | Path, bench: Benchmark) -> dict[str, Any]:
    """Our own file's first line, which must be of this benchmark; of any other file nothing."""
    path = _file(path)
    if path.is_dir() or path.suffix != ".jsonl":
        return {}
    with path.open(encoding="utf-8") as lines:
        first = parsed(lines.readline().encode()) or {}
    if first.get("mmfast") != "answers":
        return {}
    if first.get("version") != VERSION:
        raise ValueError(f"{path} was written by another version of mmfast: ask again, or convert it there")
    if first.get("bench") != bench.name:
        raise ValueError(f"{path} holds answers to {first.get('bench')}, not to {bench.name}")
    return first


def read(path: str | Path, bench: Benchmark, questions: Sequence[Question]) -> Found:
    """The answers of a file or folder, by question."""
    path = _file(path)
    header, layout, rows = _rows(path, [*_official(questions[0])])
    pairs = _own(questions, rows) if header else _pairs(path, bench, questions, rows)
    return Found(answers=_matched(path, bench, len(rows), pairs), layout=layout, header=header)


def _file(path: str | Path) -> Path:
    path = Path(path)
    path = path / "answers.jsonl" if (path / "answers.jsonl").is_file() else path
    if not path.exists():
        raise ValueError(f"{path}: there is no such file of answers")
    return path


def _rows(path: Path, columns: Sequence[str]) -> tuple[dict[str, Any], str, list[Row]]:
    """(header of our own layout, the layout's name, what the file holds). `columns`: names that a key may be."""
    if path.is_dir():
        return {}, "mme", list(_task_files(path))
    kind = path.suffix.lower()
    if kind in (".tsv", ".csv", ".xlsx"):
        return {}, "mmbench", [_row(path, n, row) for n, row in enumerate(_table(path), 2)]
    if kind in (".pkl", ".pickle"):
        return {}, "dgpref", list(_keyed(path, load_pickle(path), columns))
    value = _parsed(path)
    if isinstance(value, dict) and isinstance(value.get("imgToEval"), dict):
        return {}, "chair", [_row(path, name, row) for name, row in value["imgToEval"].items()]
    if isinstance(value, dict):
        return {}, "keyed", list(_keyed(path, value, columns))
    if value and isinstance(value[0], dict) and value[0].get("mmfast") == "answers":
        return value[0], "mmfast", [_row(path, n, row) for n, row in enumerate(value[1:], 2)]
    if all(isinstance(one, str) for one in value):
        return {}, "texts", [Row(place=f"{path}:{n}", names={}, turns=(one,)) for n, one in enumerate(value, 1)]
    return {}, "rows", [_row(path, n, row) for n, row in enumerate(value, 1)]


def _parsed(path: Path) -> Any:
    """JSON, JSON lines, or plain lines of a .txt."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".txt":
        return text.splitlines()
    try:
        value = json.loads(text)
        one_line = isinstance(value, dict) and "imgToEval" not in value and "\n" not in text.strip()
        if isinstance(value, list) or not (one_line and any(name in value for name in (*TEXTS, "choices", "mmfast"))):
            if not isinstance(value, list | dict):
                raise ValueError(f"{path} holds no answers")
            return value
        return [value]
    except json.JSONDecodeError:
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError:
            raise ValueError(f"{path} line {number} is no JSON") from None
    return rows


def _row(path: Path, place: Any, row: Any) -> Row:
    where = f"{path}:{place}"
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no answer: a row with a name and a text is wanted")
    if "choices" in row and isinstance(row["choices"], list):  # MT-Bench
        if len(row["choices"]) != 1:
            raise ValueError(f"{where} has {len(row['choices'])} choices: a file of one choice a question is wanted")
        return Row(place=where, names=row, turns=tuple(row["choices"][0]["turns"]))
    if isinstance(row.get("turns"), list):
        return Row(place=where, names=row, turns=tuple(map(str, row["turns"])))
    column = next((name for name in TEXTS if name in row), None)
    if column is None:
        raise ValueError(f"{where} has no answer: none of the columns {', '.join(TEXTS)}")
    text = row[column]
    return Row(
        place=where, names={k: v for k, v in row.items() if k != column}, turns=("" if text is None else str(text),)
    )


def _keyed(path: Path, value: Any, columns: Sequence[str]) -> Iterator[Row]:
    """{name: text}: MM-Vet's "v1_7", DGPref's image ids."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{path} holds no answers: {{name: text}} is wanted")
    for name, text in value.items():
        yield Row(place=f"{path}:{name}", names=dict.fromkeys(columns, name), turns=(text,))


def _task_files(folder: Path) -> Iterator[Row]:
    """MME: TASK.txt with image, question, gold and answer between tabs."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise ValueError(f"{folder} holds no answers: neither answers.jsonl nor TASK.txt files")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) != 4:
                raise ValueError(
                    f"{file} line {number} has {len(cells)} cells: image, question, gold and answer make 4"
                )
            names = {"task": file.stem, "image": cells[0], "question": cells[1]}
            yield Row(place=f"{file}:{number}", names=names, turns=(cells[3],))


def _table(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() != ".xlsx":
        text = path.read_bytes().decode("utf-8-sig")
        csv.field_size_limit(1 << 30)
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise ValueError(f"{path}: reading xlsx needs openpyxl (pip install openpyxl); or save it as .tsv") from None
    head, *body = openpyxl.load_workbook(path, read_only=True).active.iter_rows(values_only=True)
    return [dict(zip(head, line, strict=True)) for line in body]


# whose answer a row is


def _matched(
    path: Path, bench: Benchmark, number: int, pairs: Iterable[tuple[Row, Question | None]]
) -> dict[str, Answer]:
    if not number:
        raise ValueError(f"{path} holds no answer")
    found: dict[str, Answer] = {}
    places: dict[str, str] = {}
    strangers: list[Row] = []
    for row, question in pairs:
        if question is None:
            strangers.append(row)
            continue
        if question.id in found:
            raise ValueError(
                f"{path} answers question {question.id} of {bench.name} twice: {places[question.id]} and {row.place}"
            )
        meta = {k: v for k, v in row.names.items() if isinstance(v, str | int | float | bool)}
        found[question.id], places[question.id] = Answer(id=question.id, turns=row.turns, meta=meta), row.place
    if strangers:
        first = {k: v for k, v in strangers[0].names.items() if k not in ASKED and isinstance(v, str | int)}
        told = ", ".join(f"{k} {v}" for k, v in first.items()) or strangers[0].place
        who = "none is to a question" if not found else f"{len(strangers)} are to no question"
        raise ValueError(f"{path}: of {number} answers {who} of {bench.name} (the first: {told[:80]})")
    return found


def _own(questions: Sequence[Question], rows: list[Row]) -> Iterator[tuple[Row, Question | None]]:
    known = {q.id: q for q in questions}
    for row in rows:
        yield row, known.get(str(row.names.get("id")))


def _pairs(
    path: Path, bench: Benchmark, questions: Sequence[Question], rows: list[Row]
) -> Iterator[tuple[Row, Question | None]]:
    """Each row with its question; None where it has none."""
    names = _names_used(questions, rows)
    if not names:
        if len(rows) != len(questions):
            raise ValueError(
                f"{path} has {len(rows)} answers without names, and {bench.name} asks {len(questions)} questions: "
                "by their order they do not fit"
            )
        for row, question in zip(rows, questions, strict=True):
            _check_words(row, question, bench)
            yield row, question
        return
    # Several questions may bear one name (those of an image): by their words, then in their order
    waiting: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    for question in questions:
        waiting[_named(_official(question), names)].append(question)
    alone = {name for name, several in waiting.items() if len(several) == 1}
    counts = Counter(_named(row.names, names) for row in rows)
    for row in rows:
        name = _named(row.names, names)
        several = waiting.get(name, [])
        if name in alone or not several:
            yield row, several[0] if several else None
            continue
        words = next((_words(str(row.names[c])) for c in ASKED if row.names.get(c)), "")
        same = [q for q in several if words and _words(q.turns[0]) == words]
        if not same and counts[name] != len(several) and len(several) > 1:
            raise ValueError(
                f"{row.place}: {bench.name} has several questions named {' '.join(name)}, and the row does not tell "
                "which of them it answers"
            )
        one = (same or several)[0]
        several.remove(one)
        yield row, one


def _check_words(row: Row, question: Question, bench: Benchmark) -> None:
    """Rows without names may still repeat the question."""
    here = next((_words(str(row.names[c])) for c in ASKED if row.names.get(c)), "")
    there = _words(question.turns[0])
    if here not in there and there not in here:
        raise ValueError(
            f"{row.place} answers {here[:60]!r} where {bench.name} asks {there[:60]!r}: by their order answers and "
            "questions do not fit"
        )


def _official(question: Question) -> dict[str, Any]:
    return {"id": question.id, "question_id": question.id} | dict(question.official)


def _names_used(questions: Sequence[Question], rows: list[Row]) -> tuple[str, ...]:
    """The name by which most rows find a question, of those that tell the questions apart; else all that they share.
    Our own ids count too."""
    known = [_official(q) for q in questions]
    columns = dict.fromkeys(k for k in [*questions[0].official, *known[0]] if all(k in row.names for row in rows))
    found: dict[str, int] = {}
    unique: dict[str, int] = {}
    for column in columns:
        there = [plain(one.get(column)) for one in known]
        names = set(there)
        met = sum(plain(row.names[column]) in names for row in rows)
        (unique if len(names) == len(there) else found)[column] = met
    if max(unique.values(), default=0) > max(0, max(found.values(), default=1) - 1):
        return (max(unique, key=lambda column: unique[column]),)
    if any(found.values()):
        return tuple(column for column, met in found.items() if met)
    return tuple(column for column in columns if column not in ASKED)[:1]


def _named(values: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(plain(values.get(name)) for name in names)


def plain(value: Any) -> str:
    """One spelling of a name: of COCO's files by their number, of numbers without zeros in front."""
    text = str(value).strip()
    if found := re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)(?:\.(?:jpg|jpeg|png)|\.0)?", text):
        return found[1]
    return text


def _words(text: str) -> str:
    return " ".join(text.replace("<image>", " ").lower().split())
