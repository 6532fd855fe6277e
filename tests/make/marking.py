"""Marks answers given as texts, by a benchmark alone: without engines, layouts or records."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mmfast.engines.base import Reply
from mmfast.evals.base import Answer, Data, Scoring
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.intervals import totals

GOLDEN = Path(__file__).parents[1] / "evals" / "golden"


def golden(name):
    """A file of tests/evals/golden, made by the official script (golden/README.md there)."""
    return json.loads((GOLDEN / name).read_text())


def stored(name, folder):
    """(the benchmark, its questions) of items in golden/prompts: `bench`, `bench/wording` or `bench@template`."""
    bench, _, wording = name.partition("@")[0].partition("/")
    for file, content in golden("prompts/items.json")[name].items():
        with open(folder / file, "w", encoding="utf-8", newline="") as out:
            out.write(content)
    return bench_of(bench), asked(bench_of(bench), folder, wording or None)


def official(*names, variable="MMFAST_EVAL_DATA"):
    """Files of the official data; skips where they are not here."""
    folder = os.environ.get(variable, "")
    paths = [Path(folder) / name for name in names]
    if not folder or not all(path.exists() for path in paths):
        pytest.skip(f"{variable} names no folder with {', '.join(names)}")
    return paths


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def asked(bench, folder, wording=None):
    wording = bench.wordings[wording] if wording else next(iter(bench.wordings.values()))
    return list(bench.questions(Data(folder, bench), wording))


class Said:
    """A judge that says what a function of the call gives: a text, or an error."""

    name = "said"

    def __init__(self, say):
        self.say, self.calls = say, []

    def ask(self, calls):
        replies = {}
        for call in calls:
            self.calls.append(call)
            said = self.say(call)
            replies[call.key] = said if isinstance(said, Reply) else Reply(key=call.key, text=said)
        return replies


def recorded(replies):
    """A judge that was recorded: key -> its replies, the first one first."""

    def say(call):
        key, _, number = call.key.partition("#")
        return replies[key][int(number or 0)]

    return Said(say)


class Marked:
    """What marks and metrics give for texts by the questions' ids. `only`: those that have a text are all there are."""

    def __init__(
        self, bench, folder, texts, *, flavour=None, wording=None, strict=False, judge=None, only=False, **options
    ):
        data = Data(folder, bench)
        words = bench.wordings[wording] if wording else next(iter(bench.wordings.values()))
        self.questions = [q for q in bench.questions(data, words) if not only or q.id in texts]
        answers = {
            name: text
            if isinstance(text, Answer)
            else Answer(id=name, turns=(text,) if isinstance(text, str) else text)
            for name, text in texts.items()
        }
        flavour = flavour or bench.flavours[0]
        self.scoring = Scoring(data=data, flavour=flavour, strict=strict, judge=judge, options=options)
        self.marks = list(bench.marks(self.questions, answers, self.scoring))
        self.sums = totals(self.marks)
        self.metrics = dict(bench.metrics(self.sums, flavour))
        # The same of arrays, as intervals take them: of all marks, and of none
        both = bench.metrics({name: np.array([number, 0.0]) for name, number in self.sums.items()}, flavour)
        for name, figure in self.metrics.items():
            assert np.broadcast_to(both[name], 2)[0] == pytest.approx(figure, rel=1e-9, abs=1e-12), name
            assert np.isfinite(both[name]).all(), name
        self.metrics |= bench.extra(self.marks, self.scoring)
        self.answers, self.bench = answers, bench

    def told(self, name):
        return {mark.id: mark.told.get(name) for mark in self.marks}


def marked(name, folder, texts, **given):
    """(metrics, marks, scoring) of a benchmark by its name."""
    found = Marked(bench_of(name), folder, texts, **given)
    return found.metrics, found.marks, found.scoring
