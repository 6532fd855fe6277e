"""Questions and answers in files of their own, as LLaVA's model_vqa has them: joined by question_id or id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmfast.data.containers.read import iterate
from mmfast.data.formats.messages import image_list
from mmfast.data.problems import BadRow

IDS = ("question_id", "id")
ASKED = ("question", "text", "prompt", "raw_question")
IMAGE = ("image", "image_path", "images")
KNOWN = (*IDS, *ASKED, *IMAGE)
TRUE = ("reference", "ground_truth", "gt_answer")


class Questions:
    """A file of questions by their ids. It is read whole: each id must be there once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, tuple[str, dict[str, Any]]] = {}
        self.met: set[str] = set()
        for row in iterate(path):
            if isinstance(row.value, BadRow):
                raise ValueError(f"--questions: {row.source}: {row.value}")
            name = _id(row.value)
            if name is None:
                raise ValueError(f"--questions: {row.source} has no {' and no '.join(IDS)}")
            if name in self.rows:
                raise ValueError(f"--questions: {row.source} and {self.rows[name][0]} have the same id {name}")
            self.rows[name] = row.source, row.value

    def of(self, value: dict[str, Any], asked: Any, images: tuple[Any, ...]) -> tuple[Any, tuple, dict[str, Any]]:
        """What was asked of a row of an answer, with its images, and what else the question's row says."""
        name = _id(value)
        if name is None:
            raise BadRow("join", f"the answer has no {' and no '.join(IDS)} to find its question by")
        if name not in self.rows:
            raise BadRow("join", f"{self.path.name} has no question {name}")
        self.met.add(name)
        _, row = self.rows[name]
        found = next((row[column] for column in ASKED if row.get(column) is not None), None)
        if isinstance(found, str) and isinstance(asked, str) and _bare(found) != _bare(asked):
            raise BadRow("join", f"question {name} is {_bare(found)[:60]!r} there, and {_bare(asked)[:60]!r} here")
        pictures = image_list(next((row[column] for column in IMAGE if row.get(column) is not None), None))
        more = {column: thing for column, thing in row.items() if column not in KNOWN and thing is not None}
        true = next((row[column] for column in TRUE if isinstance(row.get(column), str)), None)
        more |= {} if true is None else {"reference": true}
        return asked if found is None else found, pictures or images, more

    def left(self) -> str:
        """A line on the questions that nothing answered; empty if there are none."""
        missing = [name for name in self.rows if name not in self.met]
        return f"{len(missing)} questions of {self.path.name} have no answer, the first {missing[0]}" if missing else ""


def _id(row: dict[str, Any]) -> str | None:
    return next((str(row[name]) for name in IDS if isinstance(row.get(name), str | int) and str(row[name])), None)


def _bare(text: str) -> str:
    return text.replace("<image>", "").strip()
