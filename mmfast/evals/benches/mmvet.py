"""MM-Vet: a judge gives each answer a score from 0 to 1, five times over; six capabilities and their combinations.

What stands before the reply's first blank must be a number from 0 to 1. If not, the judge is asked again with a
sentence more, at temperature 0, then .5, 1 and 1.5; then the score is 0 (the official script asks a sixth time and does
not look). The figures are means over runs; `std` is the population's over the runs' totals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from mmfast.engines.base import Decode
from mmfast.evals.asking import call, replies, script
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import need, value

RUNS = 5
AGAIN = "\nPredict the correctness of the answer (digit): "
WARMER = (0.0, 0.0, 0.5, 1.0, 1.5)  # the temperature of each try


class MmVet(Benchmark):
    name = "mm-vet"
    about = "218 questions of six capabilities, graded by a judge"
    wordings: ClassVar = {"llava": Wording(decode=Decode(max_tokens=1024), about="LLaVA's evaluation: greedy")}
    files: ClassVar = {
        "questions": File(
            names=("mm-vet.json",),
            what="its questions",
            source="github.com/yuweihao/MM-Vet/releases (mm-vet.zip)",
            licence="CC BY-NC 4.0",
        ),
        "prompts": File(
            names=("mm-vet_evaluator.py",),
            what="the judge's examples",
            source="github.com/yuweihao/MM-Vet",
            licence="Apache-2.0",
            optional=True,
        ),
    }
    judge = "gpt-4-0613"
    options: ClassVar = {"runs": f"how often each answer is judged; default: {RUNS}"}
    layout = "mmvet"
    published = "LLaVA-1.5 7B 31.1, 13B 36.1 (LLaVA docs/MODEL_ZOO.md)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for name, row in value(data, "questions").items():
            need(row, ("imagename", "question", "answer", "capability:texts"), data, "questions")
            truth = row["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
            yield Question(
                id=name,
                turns=(row["question"] + wording.suffix,),
                images=(data.picture(f"images/{row['imagename']}"),),
                unit=row["imagename"],
                official={"id": name, "question_id": name.removeprefix("v1_")},
                truth={"answer": truth, "asked": row["question"], "capabilities": sorted(set(row["capability"]))},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        runs = int(scoring.options.get("runs", RUNS))
        if runs < 1:
            raise ValueError(f"runs = {runs}: MM-Vet is judged at least once")
        examples = script(scoring, "prompts").get("prompt", OWN)
        rows = {
            q.id: f"{examples}\n" + " | ".join((q.truth["asked"], q.truth["answer"], answers[q.id].text, ""))
            for q in questions
        }
        scores = [self._run(number, rows, scoring) for number in range(runs)]
        for question in questions:
            each = [run[question.id] for run in scores]
            names = ["total", *question.truth["capabilities"], "+".join(question.truth["capabilities"])]
            sums = {
                f"{name}:{what}": number
                for name in dict.fromkeys(names)
                for what, number in (("asked", 1.0), ("score", sum(each) / len(each)))
            }
            # A capability alone and the questions that need it alone are two figures
            if len(question.truth["capabilities"]) == 1:
                sums |= {f"only {names[1]}:{what}": sums[f"total:{what}"] for what in ("asked", "score")}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"scores": each})

    def _run(self, number: int, rows: Mapping[str, str], scoring: Scoring) -> dict[str, float]:
        """One run over all rows: as many tries as it takes, at most five a row."""
        found: dict[str, float] = {}
        for attempt, temperature in enumerate(WARMER):
            calls = [
                call(
                    f"{name}:{number}:{attempt}",
                    row + (AGAIN if attempt else ""),
                    temperature=temperature,
                    max_tokens=3,
                )
                for name, row in rows.items()
                if name not in found
            ]
            calls = [replace(c, decode=replace(c.decode, seed=number)) for c in calls]
            for key, text in replies(scoring, calls).items():
                score = grade(text)
                if score is not None:
                    found[key.removesuffix(f":{number}:{attempt}")] = score
        scoring.counts["unparsed"] += len(rows) - len(found)
        return {name: found.get(name, 0.0) for name in rows}

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        names = [name.removesuffix(":asked") for name in sums if name.endswith(":asked")]
        return {name: ratio(sums[f"{name}:score"], sums[f"{name}:asked"]) * 100 for name in names}

    def extra(self, marks: Sequence[Mark], scoring: Scoring) -> dict[str, float]:
        """How the runs differ, which no sum over answers tells."""
        totals = np.mean([mark.told["scores"] for mark in marks], axis=0) * 100
        return {"std": float(totals.std())} | {f"run{n}": float(total) for n, total in enumerate(totals, 1)}


def grade(text: str) -> float | None:
    try:
        score = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


OWN = """\
Grade a prediction by the ground truth, from 0.0 (wrong) to 1.0 (right) in steps of 0.1. <AND> joins parts that must all
be there, <OR> parts of which one is enough. Reply with the grade alone, which completes the last row.

Question | Ground truth | Prediction | Grade
--- | --- | --- | ---
How many cups and plates are there? | 2 cups <AND> 3 plates | two cups | 0.5
What is it? | a lamp <OR> a light | It is a light. | 1.0
What is it? | a lamp <OR> a light | a chair | 0.0
"""

BENCHES = (MmVet(),)
