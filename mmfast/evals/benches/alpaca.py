"""AlpacaEval: a judge prefers a baseline's answer (1) or the model's (2), over 805 instructions without pictures.

`1` ranks by GPT-4 against text_davinci_003; `2` reads the log-probs of two one-letter names against GPT-4 Turbo, so
that a preference may lie between; `length-controlled` is `2` with the win rate as if both answers were of one length
(length_control.py). Which answer stands first is drawn by the instruction, as the package draws it; equal answers are a
draw without a call; a reply that cannot be read is left out.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmfast.engines.base import Decode
from mmfast.evals.alpaca_judge import OWN, pair_call, ranked, weighed
from mmfast.evals.asking import answered, own
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.length_control import win_rate
from mmfast.evals.reading import need, rows

HUB = "huggingface.co/datasets/tatsu-lab/alpaca_eval"
SCRIPTS = "github.com/tatsu-lab/alpaca_eval, src/alpaca_eval/evaluators_configs"
DRAW = 1.5


def _file(what: str, source: str, *names: str) -> File:
    return File(names=names, what=what, source=source, licence="Apache-2.0, data CC BY-NC 4.0", optional=True)


class Alpaca(Benchmark):
    name = "alpacaeval"
    about = "805 instructions without pictures, preferred by a judge over a baseline"
    flavours: ClassVar = ("1", "2", "length-controlled")
    wordings: ClassVar = {"greedy": Wording(decode=Decode(max_tokens=2048), about="the instruction alone")}
    files: ClassVar = {
        "davinci": _file("its instructions with text_davinci_003's answers", HUB, "alpaca_eval.json"),
        "turbo": _file("its instructions with GPT-4 Turbo's answers", HUB, "alpaca_eval_gpt4_baseline.json"),
        "gamed": _file("two gamed baselines and the instructions' difficulty", HUB, "df_gamed.csv"),
        "ranking": _file("the judge's prompt", f"{SCRIPTS}/alpaca_eval_gpt4", "alpaca_eval.txt"),
        "choice": _file("the judge's prompt", f"{SCRIPTS}/alpaca_eval_clf_gpt4_turbo", "alpaca_eval_clf.txt"),
    }
    layout = "alpaca"
    published = "SteerLM of mllm-dpo (13B) 68.8 by version 1 (its poster; its stored annotations give 68.75 of 800)"
    judge = "gpt-4 (1), gpt-4-1106-preview with log-probs (2, length-controlled)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        roles = [role for role in ("davinci", "turbo") if data.path(role)]
        known = {role: rows(data, role) for role in roles}
        for number, row in enumerate(known[roles[0]] if roles else ()):
            for role, others in known.items():
                if len(others) != len(known[roles[0]]):
                    raise ValueError(f"{data.path(role)} has {len(others)} rows, {data.path(roles[0])} another number")
                need(others[number], ("instruction", "output"), data, role)
                if others[number]["instruction"] != row["instruction"]:
                    raise ValueError(
                        f"{data.path(role)}, row {number}: another instruction than in {data.path(roles[0])}"
                    )
            yield Question(
                id=str(number),
                turns=(row["instruction"] + wording.suffix,),
                official={"instruction": row["instruction"]},
                truth={"instruction": row["instruction"]} | {role: known[role][number]["output"] for role in roles},
            )
        if not roles:
            raise ValueError(
                f"{data.folder} has no alpaca_eval.json or alpaca_eval_gpt4_baseline.json: alpacaeval needs its "
                f"instructions with a baseline's answers, to be had from {HUB} (CC BY-NC 4.0)"
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        old = scoring.flavour == "1"
        role, kind = ("davinci", "ranking") if old else ("turbo", "choice")
        file = scoring.data.bench.files[role]
        if scoring.data.path(role) is None:
            raise ValueError(
                f"{scoring.data.folder} has no {file.names[0]}: flavour {scoring.flavour} compares with it ({HUB})"
            )
        if scoring.flavour == "length-controlled" and scoring.data.path("gamed") is None:
            raise ValueError(
                f"{scoring.data.folder} has no df_gamed.csv: the length-controlled win rate needs it ({HUB})"
            )
        prompt = OWN[kind]
        if scoring.data.path(kind):
            prompt = scoring.data.read(kind).decode()
        else:
            own(scoring, kind)
        # Which stands first is drawn by the instruction
        calls, switched = [], {}
        for question in questions:
            pair = (question.truth[role], answers[question.id].text)
            if pair[0] == pair[1]:
                continue
            switched[question.id] = _switched(question.truth["instruction"])
            first, second = reversed(pair) if switched[question.id] else pair
            calls.append(pair_call(question.id, prompt, question.truth["instruction"], first, second, old))
        said = answered(scoring, calls)
        for question in questions:
            preference: float | None = None if question.id in switched else DRAW
            if question.id in said:
                preference = ranked(said[question.id].text) if old else weighed(said[question.id])
                scoring.counts["unparsed"] += preference is None
            if preference is not None and switched.get(question.id):
                preference = 3 - preference
            lengths = (len(question.truth[role]), len(answers[question.id].text))
            told = {"preference": preference, "lengths": lengths}
            yield Mark(id=question.id, unit=question.id, sums=_sums(preference, lengths), told=told)

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        n = sums.get("kept", 0.0)
        mean = ratio(sums.get("won", 0.0), n)
        spread = ratio(sums.get("squares", 0.0) - n * mean * mean, n - 1)
        return {
            "win_rate": mean * 100,
            "standard_error": np.sqrt(np.maximum(ratio(spread, n), 0.0)) * 100,
            "discrete_win_rate": ratio(sums.get("wins", 0.0) + sums.get("draws", 0.0) / 2, n) * 100,
            "length": ratio(sums.get("length", 0.0), sums.get("asked", 0.0)),
        }

    def extra(self, marks: Sequence[Mark], scoring: Scoring) -> dict[str, float]:
        """The length-controlled win rate, which is a fit and no sum."""
        if scoring.flavour != "length-controlled":
            return {}
        gamed = list(csv.DictReader(io.StringIO(scoring.data.read("gamed").decode())))
        names = ("preference", "index", "std_delta_len", "instruction_difficulty")
        if not gamed or not set(names) <= set(gamed[0]):
            raise ValueError(f"{scoring.data.path('gamed')} lacks columns of {', '.join(names)}")
        first: dict[str, int] = {}
        for place, row in enumerate(gamed):
            first.setdefault(row["index"], place)
        hard = {place: float(gamed[place]["instruction_difficulty"]) for place in first.values()}
        if not all(int(mark.id) in hard for mark in marks):
            raise ValueError(f"{scoring.data.path('gamed')} does not know the difficulty of every instruction")
        figure, error = win_rate(
            [math.nan if mark.told["preference"] is None else mark.told["preference"] - 1 for mark in marks],
            np.array([mark.told["lengths"] for mark in marks]),
            np.array([hard[int(mark.id)] for mark in marks]),
            np.array([[float(row[name] or math.nan) for name in (names[0], *names[2:])] for row in gamed]),
        )
        return {"length_controlled_winrate": figure, "lc_standard_error": error}


def _sums(preference: float | None, lengths: tuple[int, int]) -> dict[str, float]:
    sums = {"asked": 1.0, "length": float(lengths[1])}
    if preference is not None:
        won = preference - 1
        sums |= {"kept": 1.0, "won": won, "squares": won * won}
        sums |= {"wins": float(won > 0.5), "draws": float(won == 0.5)}
    return sums


def _switched(instruction: str) -> bool:
    """Whether the package shows the model's answer first."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True], k=1)[0]


BENCHES = (Alpaca(),)
