"""Answers written in the layout of each benchmark's official script (layouts.py reads them)."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfast.evals.base import Answer, Benchmark, Data, Question
from mmfast.evals.layouts import plain
from mmfast.files import write_bytes


def write(
    path: Path, layout: str, questions: Sequence[Question], answers: Mapping[str, Answer], model: str = "mmfast"
) -> None:
    """Answers in an official layout, in the order of the questions."""
    if layout not in LAYOUTS:
        raise ValueError(f"--layout: unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}, upload")
    given = [(question, answers[question.id]) for question in questions if question.id in answers]
    LAYOUTS[layout](path, given, model)


def upload(
    folder: Path, bench: Benchmark, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data
) -> None:
    """The files that the benchmark's server takes, into a folder."""
    if missing := [q.id for q in questions if q.id not in answers]:
        raise ValueError(f"{bench.name}: {len(missing)} questions have no answer (the first: {missing[0]})")
    files = bench.upload(questions, answers, data)
    if not files:
        raise ValueError(f"--layout upload: {bench.name} is scored here, no server takes its answers")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)


Given = list[tuple[Question, Answer]]


def _name(question: Question, *names: str) -> Any:
    """What the official files call it: the first of these names that it has, else its id."""
    return next((question.official[name] for name in names if name in question.official), _number(question.id))


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _json(path: Path, value: Any) -> None:
    write_bytes(path, json.dumps(value, ensure_ascii=False, indent=1).encode())


def _llava(path: Path, given: Given, model: str) -> None:
    own = ({"question_id": _name(q, "question_id"), "prompt": q.turns[0]} for q, _ in given)
    _lines(
        path,
        ({**row, "text": a.text, "model_id": model, "metadata": {}} for row, (_, a) in zip(own, given, strict=True)),
    )


def _rlhfv(path: Path, given: Given, model: str) -> None:
    _lines(
        path,
        (
            {
                "question_id": _name(q, "question_id"),
                "image_id": _name(q, "image_id", "image"),
                "prompt": q.turns[0],
                "text": a.text,
                "model_id": model,
                "metadata": {},
            }
            for q, a in given
        ),
    )


def _mtbench(path: Path, given: Given, model: str) -> None:
    _lines(
        path,
        (
            {
                "question_id": _name(q, "question_id"),
                "answer_id": q.id,
                "model_id": model,
                "choices": [{"index": 0, "turns": list(a.turns)}],
                "tstamp": 0.0,
            }
            for q, a in given
        ),
    )


def _chair(path: Path, given: Given, model: str) -> None:
    scores = {name: 0.0 for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "CIDEr", "SPICE", "ROUGE_L")}
    rows = {
        str(number): {"image_id": _number(_name(q, "image_id", "image")), "caption": a.text, **scores}
        for number, (q, a) in enumerate(given)
    }  # the script reads these scores and prints them beside its own
    _json(path, {"overall": scores, "imgToEval": rows})


def _mme(path: Path, given: Given, model: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, list[str]] = defaultdict(list)
    for q, a in given:
        cells = [*(str(q.official[name]) for name in ("image", "question", "gold")), a.text]
        tasks[str(q.official["task"])].append("\t".join(" ".join(cell.split()) for cell in cells))
    for task, lines in tasks.items():
        write_bytes(path / f"{task}.txt", ("\n".join(lines) + "\n").encode())


def _mmbench(path: Path, given: Given, model: str) -> None:
    rows = [
        {**q.official, "prediction": a.text} if q.official else {"index": q.id, "prediction": a.text} for q, a in given
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix.lower() == ".xlsx":
        try:
            import openpyxl
        except ModuleNotFoundError:
            raise ValueError(f"{path}: writing xlsx needs openpyxl (pip install openpyxl); or name a .tsv") from None
        book = openpyxl.Workbook()
        for line in (columns, *([row.get(c) for c in columns] for row in rows)):
            book.active.append(line)
        book.save(path)
        return
    out = io.StringIO()
    table = csv.DictWriter(out, columns, delimiter="\t", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(path, out.getvalue().encode())


def _listed(name: str, text: str, *others: str) -> Callable[[Path, Given, str], None]:
    """A JSON list of {name, text}."""

    def written(path: Path, given: Given, model: str) -> None:
        _json(path, [{name: _name(q, name, *others), text: a.text} for q, a in given])

    return written


def _alpaca(path: Path, given: Given, model: str) -> None:
    _json(path, [{"instruction": _name(q, "instruction"), "output": a.text, "generator": model} for q, a in given])


def _mmvet(path: Path, given: Given, model: str) -> None:
    _json(path, {str(_name(q, "id", "question_id")): a.text for q, a in given})


def _dgpref(path: Path, given: Given, model: str) -> None:
    write_bytes(path, pickle.dumps({str(_name(q, "image_id", "image")): a.text for q, a in given}))


def _texts(path: Path, given: Given, model: str) -> None:
    _json(path, [a.text for _, a in given])


LAYOUTS: dict[str, Callable[[Path, Given, str], None]] = {
    "llava": _llava,
    "rlhfv": _rlhfv,
    "amber": _listed("id", "response"),
    "mtbench": _mtbench,
    "mmvet": _mmvet,
    "mme": _mme,
    "chair": _chair,
    "mmbench": _mmbench,
    "alpaca": _alpaca,
    "dgpref": _dgpref,
    "vqa": _listed("question_id", "answer"),
    "vizwiz": _listed("image", "answer"),
    "gqa": _listed("questionId", "prediction", "question_id"),
    "texts": _texts,
}


def _number(name: Any) -> Any:
    """A name that is a number, as one."""
    text = plain(name)
    return int(text) if text.isdigit() else name
