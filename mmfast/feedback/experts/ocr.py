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
        read = self.reader(np.asarray(picture_of(picture))[:, :, ::-1])  # it takes blue first
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
    rows = [_words(row) for row in rows_of(lines)]
    page = [word for row in rows for word in row]
    here = any(page[n : n + len(wanted)] == wanted for n in range(len(page)))
    here = here or any("".join(row) == "".join(wanted) for row in rows)  # blanks are what readers get wrong
    return Verdict(value=TRUE if here else FALSE, evidence=evidence)


def rows_of(lines: Sequence[Line]) -> list[str]:
    """Lines of one height from left to right as one text; rows from the top."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.y0 + line.y1) / 2):
        middle = (line.y0 + line.y1) / 2
        if rows and rows[-1][0].y0 <= middle <= rows[-1][0].y1:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [" ".join(line.text for line in sorted(row, key=lambda line: line.x0)) for row in rows]


def _plain(text: str) -> str:
    return "".join(sign for sign in text.lower() if sign not in PUNCTUATION).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
