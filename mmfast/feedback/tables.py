"""Answers out of files: one row an answer (or several), with what was asked, images and numbers.

A row has a question (text or messages), an answer and images in columns of the usual names; every other column of
numbers is a score, unless the row has an object `scores`, which then holds them all. What only describes how an answer
was drawn is never a score.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import not_unpaired, record_id
from mmfast.data.formats.known import FORMATS, read_row
from mmfast.data.formats.messages import image_list
from mmfast.data.images.index import is_path, unwrapped
from mmfast.data.problems import BadRow
from mmfast.engines.base import canonical
from mmfast.feedback.answer import Answer, false_claims, read_claims
from mmfast.feedback.join import Questions
from mmfast.feedback.reading import Reading

QUESTION = ("question", "raw_question", "prompt", "text")
ANSWER = ("answer", "response", "cur_candidate_answer", "output", "Output", "caption", "text")
SEVERAL = ("answers", "responses")  # columns that hold a list of them
IMAGE = ("image", "image_path", "images")
IDS = ("prompt_id", "question_id", "id", "idx")
REFERENCE = ("reference", "gpt4v_response", "ground_truth", "gt_answer")
NO_SCORES = ("sample", "seed", "tokens", "logp", "row", "Key", "Unnamed: 0")  # numbers that say nothing of how good
Maker = Callable[[Row], Iterable[Answer]]


class Table:
    """Makes answers of rows: checked, named, and joined with what was asked."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.joined = Questions(reading.questions) if reading.questions else None
        self.same: Counter[str] = Counter()  # equal answers to equal prompts, each with a key of its own
        self.names = (reading.answer,) if reading.answer else ANSWER
        self.number = 0

    def each(self, rows: Iterable[Row], make: Maker) -> Iterator[Answer]:
        for row in rows:
            try:
                if isinstance(row.value, BadRow):
                    raise row.value
                made = list(make(row))
            except BadRow as error:
                self.reading.bad(row.source, error)
            else:
                yield from made

    def end(self) -> None:
        if self.joined is not None and (line := self.joined.left()):
            self.reading.notes.append(line)

    def plain(self, row: Row) -> Iterator[Answer]:
        """The answers of a row that has them in columns."""
        # What was asked, in the row or in the file of questions
        value = dict(row.value)
        texts, column = self._texts(value)
        asked = next((value[name] for name in QUESTION if value.get(name) is not None and name != column), None)
        images = image_list(next((value[name] for name in IMAGE if value.get(name) is not None), None))
        if not images and isinstance(value.get("metainfos"), dict):  # RLAIF-V's
            images = image_list(value["metainfos"].get("image_path"))
        meta: dict[str, Any] = {}
        if self.joined is not None:
            asked, images, meta = self.joined.of(value, asked, images)
        if asked is None or not texts:
            raise BadRow(
                "format",
                f"a scored answer needs a question ({', '.join(QUESTION)}) and an answer ({', '.join(self.names)}) as "
                f"texts; the row has {', '.join(sorted(value))}",
            )
        not_unpaired(value)
        # What is said of the answers
        used = {*QUESTION, *self.names, *SEVERAL, *IMAGE, "claims", "scores", "system", "group"}
        meta |= {name: thing for name, thing in value.items() if name not in used and thing is not None}
        reference = next((value[name] for name in REFERENCE if isinstance(value.get(name), str)), None)
        if reference is not None:
            meta["reference"] = reference
        for sample, text in enumerate(texts):
            claims = read_claims(_decoded(value.get("claims")), text)
            _as_many(value.get("facts"), claims)
            scores = _scores(value, {*used, *ANSWER})
            if claims is not None:
                scores.setdefault("claims", 0.0 - false_claims(claims))
            drawn = {name: value[name] for name in ("decode", "finish") if isinstance(value.get(name), str)}
            number = value.get("sample") if len(texts) == 1 and isinstance(value.get("sample"), int) else sample
            yield self.answer(
                row, asked, text, images, system=value.get("system"), group=value.get("group"), sample=number,
                scores=scores, claims=claims, meta=meta, **drawn,
            )  # fmt: skip

    def _texts(self, value: dict[str, Any]) -> tuple[list[str], str]:
        """The answers, and the column that they stand in."""
        for name in SEVERAL if not self.reading.answer else ():
            if isinstance(value.get(name), list):
                if not all(isinstance(text, str) for text in value[name]):
                    raise BadRow("format", f"{name} is a list of texts, and one of its members is none")
                return value[name], name
        asked = [name for name in QUESTION if value.get(name) is not None]
        for name in self.names:
            if value.get(name) is not None and (name not in QUESTION or asked != [name] or self.joined is not None):
                return ([value[name]], name) if isinstance(value[name], str) else ([], name)
        return [], ""

    def answer(self, row: Row, asked: Any, text: str, images: tuple[Any, ...], **fields: Any) -> Answer:
        """One answer. What was asked is read, and its images placed, as in any row of TRL's format."""
        said = {"images": list(images), "prompt": asked, "chosen": [{"role": "assistant", "content": text}]}
        said |= {"system": system} if (system := fields.pop("system", None)) else {}
        (record,) = read_row(FORMATS["trl"], Row(row.file, row.number, said), {})
        if not record.prompt or record.prompt[-1]["role"] != "user":
            raise BadRow("format", "what was asked does not end with a question of the user")
        pictures = [self._picture(image) for image in record.images]
        named = [_name(unwrapped(image)) for image in record.images]  # as the row has them: a key does not move
        group = (
            fields.pop("group", None) or hashlib.sha256(canonical([named, list(record.prompt)]).encode()).hexdigest()
        )
        content = canonical([named, list(record.prompt), text])
        self.same[content] += 1
        self.number += 1
        own = row.value.get("key") if "value" not in row.value else None
        return Answer(
            key=own if isinstance(own, str) else _digest([content, self.same[content]]),
            row=self.number - 1,
            source=row.source,
            group=str(group),
            prompt_id=fields.pop("prompt_id", record_id(row, *IDS)),
            images=tuple(pictures),
            prompt=record.prompt,
            text=text,
            **fields,
        )

    def _picture(self, image: Any) -> Any:
        image = unwrapped(image)
        if is_path(image) and self.reading.whole:
            return os.path.abspath(self.reading.root / image)
        return image


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _name(image: Any) -> str:
    return image if isinstance(image, str) else hashlib.sha256(bytes(image)).hexdigest()


def _decoded(value: Any) -> Any:
    """A list or object that a cell holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadRow("format", f"{value[:60]!r} is no JSON") from None


def _as_many(facts: Any, claims: Any) -> None:
    if facts is not None and claims is not None and len(facts) != len(claims):
        raise BadRow("claims", f"{len(claims)} judged claims for {len(facts)} facts")


def _scores(value: dict[str, Any], texts: set[str]) -> dict[str, float]:
    given = _decoded(value.get("scores"))
    if isinstance(given, dict):
        return {name: number for name, one in given.items() if (number := number_of(one)) is not None}
    out = {}
    for name, one in value.items():
        if name in texts or name in NO_SCORES or name in IDS or name.endswith("_id"):
            continue
        if (number := number_of(one)) is not None:
            out[name] = number
    return out


def number_of(value: Any) -> float | None:
    """A number, or one written as text ("4"), as judges' tables have them; none that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
