"""Text in pictures, read by rapidocr (its models are in its wheel: nothing is fetched)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from mmfast.engines.base import Picture
from mmfast.feedback.experts import FALSE, TRUE, Case, Verdict
from mmfast.feedback.experts.weights import picture_of
from mmfast.packages import how_to_install

PUNCTUATION = ".,?!*"  # that DGPref takes out


@dataclass(frozen=True)
class Line:
    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    score: float = 1.0


class Ocr:
    kinds = frozenset(("text",))

    def __init__(self, *, least: float = 0.5, compat: bool = False) -> None:
        """
        least   confidence below which a line is not taken
        compat  DGPref's rule: the text is one whole line as it was detected
        """
        if not 0 <= least <= 1:
            raise ValueError(f"least = {least}: a confidence is from 0 to 1")
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ValueError(f"reading text needs {error.name}: {how_to_install('ocr')}") from None
        self.least, self.compat = least, compat
        self.reader = RapidOCR(params={"Global.log_level": "error"})

    def identity(self) -> dict[str, Any]:
        return {"expert": "ocr", "rapidocr": metadata.version("rapidocr"), "least": self.least, "compat": self.compat}

    def lines(self, picture: Picture) -> list[Line]:
        read: Any = self.reader(np.asarray(picture_of(picture))[:, :, ::-1])  # it takes blue first
        if read.boxes is None:
            return []
        found = []
        for corners, text, score in zip(read.boxes, read.txts, read.scores, strict=True):
            (x0, y0), (x1, y1) = np.asarray(corners).min(0).tolist(), np.asarray(corners).max(0).tolist()
            found += [Line(text, x0, y0, x1, y1, float(score))] if score >= self.least else []
        return found

    def check(self, cases: Sequence[Case]) -> Iterator[list[Verdict]]:
        for case in cases:
            try:
                lines = [line for picture in case.images for line in self.lines(picture)]
            except (ValueError, OSError) as error:
                yield [Verdict(error=str(error))] * len(case.items)
                continue
            yield [written(item.args[0], lines, compat=self.compat) for item in case.items]


def written(text: str, lines: Sequence[Line], *, compat: bool = False) -> Verdict:
    """Is a text written there? Lines of one height are one row; further words before, behind and around do not matter.
    What is no line of letters, as a circle that was read as an O, is only one line more."""
    evidence = {"lines": [line.text for line in lines]}
    if compat:
        return Verdict(value=TRUE if _plain(text) in [_plain(x.text) for x in lines] else FALSE, evidence=evidence)
    wanted = _words(text)
    if not wanted:
        return Verdict(evidence=evidence | {"why": "the text has no letters"})
    letters = [line for line in lines if len(line.text.strip()) > 1]  # one sign alone may be a circle or a pole
    here = any(_stands(wanted, [_words(row) for row in rows_of(some)]) for some in (lines, letters))
    return Verdict(value=TRUE if here else FALSE, evidence=evidence)


def _stands(wanted: list[str], rows: list[list[str]]) -> bool:
    """Do these words follow each other there, or fill a row but for its blanks, which readers get wrong?"""
    page = [word for row in rows for word in row]
    whole = any("".join(row) == "".join(wanted) for row in rows)
    return whole or any(page[n : n + len(wanted)] == wanted for n in range(len(page)))


def rows_of(lines: Sequence[Line]) -> list[str]:
    """Lines of one height, each with its middle in the other, from left to right as one text; rows from the top."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.y0 + line.y1):
        own = next((row for row in rows if _level(row[0], line) and _level(line, row[0])), None)
        if own is None:
            rows.append([line])
        else:
            own.append(line)
    return [" ".join(line.text for line in sorted(row, key=lambda line: line.x0)) for row in rows]


def _level(one: Line, other: Line) -> bool:
    return one.y0 <= (other.y0 + other.y1) / 2 <= one.y1


def _plain(text: str) -> str:
    return "".join(sign for sign in text.lower() if sign not in PUNCTUATION).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
