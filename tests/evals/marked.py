"""Marks and figures of one benchmark, without the files of answers around it; a judge with its replies at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast.engines.base import Reply
from mmfast.evals.base import Answer, Benchmark, Call, Data, Mark, Scoring
from mmfast.evals.benches import bench
from mmfast.evals.intervals import totals

GOLDEN = Path(__file__).parent / "golden"


def official(*names: str, variable: str = "MMFAST_EVAL_DATA") -> list[Path]:
    """Files of the official data; skips where they are not here."""
    folder = os.environ.get(variable, "")
    paths = [Path(folder) / name for name in names]
    if not folder or not all(path.exists() for path in paths):
        pytest.skip(f"{variable} names no folder with {', '.join(names)}")
    return paths


class Replies:
    """A judge that was recorded: key -> its replies, the first one first."""

    def __init__(self, replies: Mapping[str, Sequence[str]]) -> None:
        self.name, self.made_by, self.seed = "recorded", {"name": "recorded"}, 0
        self.replies, self.asked = replies, list[Call]()

    def ask(self, calls: Iterable[Call]) -> dict[str, Reply]:
        out = {}
        for call in calls:
            self.asked.append(call)
            key, _, number = call.key.partition("#")
            out[call.key] = Reply(key=call.key, text=self.replies[key][int(number or 0)])
        return out


def marked(
    name: str,
    folder: Path,
    texts: Mapping[str, str],
    *,
    flavour: str = "",
    wording: str = "",
    only: bool = False,
    **given: Any,
) -> tuple[dict[str, Any], list[Mark], Scoring]:
    """`only`: the questions that have a text are all there are."""
    one: Benchmark = bench(name)
    data = Data(folder, one)
    questions = list(one.questions(data, one.wordings[wording or next(iter(one.wordings))]))
    answers = {key: Answer(id=key, turns=(text,)) for key, text in texts.items()}
    scoring = Scoring(data=data, flavour=flavour or one.flavours[0], **given)
    marks = list(one.marks([q for q in questions if not only or q.id in texts], answers, scoring))
    sums = totals(marks)
    metrics = one.metrics(sums, scoring.flavour)
    # The same of arrays, as intervals take them: of all marks, and of none
    both = one.metrics({key: np.array([number, 0.0]) for key, number in sums.items()}, scoring.flavour)
    for key, figure in metrics.items():
        assert np.broadcast_to(both[key], 2)[0] == pytest.approx(figure, rel=1e-9, abs=1e-12), key
        assert np.isfinite(both[key]).all(), key
    return metrics, marks, scoring
