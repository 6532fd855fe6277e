"""GQA: short answers, compared exactly after LLaVA's export has dropped a full stop at the end and capitals.

Figures are those of Stanford's eval.py but for grounding, which wants attention maps. Only balanced questions count;
the file of all questions, where it is given, has those that follow from them, and with them the consistency. Validity
and plausibility are told where the file of choices is there.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import SHORT, need, value

SOURCE, LICENCE = "cs.stanford.edu/people/dorarad/gqa/download.html", "CC BY 4.0"
NO_STEP = ("exist", "query: name", "choose name")  # what ends a question's program is no step of reasoning
COMMON = ("color", "material", "shape")  # all that fits where two things are asked for what they share
MORE = ("types:object", "groups:object", "semantic:list", "entailed:texts", "isBalanced:bool")  # if they are there
KINDS_OF_MORE: dict[str, Any] = {"types": {}, "groups": {}, "semantic": [], "entailed": [], "isBalanced": True}
CHOICES = ("validity", "plausibility")  # of the file of choices, by its words valid and plausible


class Gqa(Benchmark):
    name = "gqa"
    less_is_better = ("distribution",)
    about = "compositional questions about scene graphs"
    published = "LLaVA-1.5 7B 62.0, 13B 63.3 (LLaVA docs/MODEL_ZOO.md)"
    wordings: ClassVar = {
        "llava": Wording(suffix=SHORT, decode=Decode(max_tokens=128), about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = {
        "questions": File(
            names=("testdev_*_questions.json", "val_*_questions.json"),
            what="its questions with answers (balanced, or all: for the consistency)",
            source=SOURCE,
            licence=LICENCE,
        ),
        "choices": File(
            names=("*_choices.json",),
            what="valid and plausible answers",
            source=SOURCE,
            licence=LICENCE,
            optional=True,
        ),
    }

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for name, row in value(data, "questions").items():
            need(row, ("question", "imageId", "answer"), data, "questions")
            need({**KINDS_OF_MORE, **row}, MORE, data, "questions")
            types, steps = row.get("types", {}), row.get("semantic", [])
            need({"structural": "", "semantic": "", **types}, ("structural", "semantic"), data, "questions")
            if not all(isinstance(step, dict) for step in steps):
                raise ValueError(f"{data.path('questions')}, {name}: its program is {str(steps)[:60]!r}, no steps")
            yield Question(
                id=name,
                turns=(row["question"] + wording.suffix,),
                images=(data.picture(f"{row['imageId']}.jpg"),),
                unit=row["imageId"],
                official={"questionId": name},
                truth={
                    "answer": row["answer"],
                    "balanced": row.get("isBalanced", True),
                    "kinds": tuple(_kinds(row["question"], types, steps, "semantic" in row)),
                    "entailed": [other for other in row.get("entailed", ()) if other != name],
                    "common": "Common" in str(types.get("detailed", "")),
                    "group": str(group) if (group := row.get("groups", {}).get("global")) is not None else None,
                },
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        # What is right, of every question, and which figures the files allow
        said = {q.id: exported(answers[q.id].text) for q in questions}
        right = {q.id: said[q.id] == q.truth["answer"] for q in questions}
        counted = [q for q in questions if q.truth["balanced"]]
        followed = [q for q in counted if q.truth["entailed"]]
        whole = all(other in right for q in followed for other in q.truth["entailed"])
        if followed and not whole:
            scoring.notes.append("consistency is of the file of all questions: those that follow are not in this one")
        given = scoring.data.path("choices") is not None
        choices = value(scoring.data, "choices") if given else {}
        # Each question that counts
        for q in counted:
            good = float(right[q.id])
            sums = {"asked": 1.0, "right": good}
            for kind in q.truth["kinds"]:
                sums |= {f"{kind}:asked": 1.0, f"{kind}:right": good}
            if whole and good and (others := q.truth["entailed"]):
                sums |= {"followed": 1.0, "consistent": sum(right[other] for other in others) / len(others)}
            if given:
                need(choices.get(q.id, {}), ("valid:texts", "plausible:texts"), scoring.data, "choices")
                for figure, key in zip(CHOICES, ("valid", "plausible"), strict=True):
                    sums[figure] = float(said[q.id] in (COMMON if q.truth["common"] else choices[q.id][key]))
            told = {"said": said[q.id], "right": bool(good), "group": q.truth["group"], "gold": q.truth["answer"]}
            yield Mark(id=q.id, unit=q.unit, sums=sums, told=told)

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        kinds = sorted(name.removesuffix(":asked") for name in sums if name.endswith(":asked"))
        told = {"accuracy": ratio(sums["right"], sums["asked"]) * 100}
        if "followed" in sums:
            told["consistency"] = ratio(sums["consistent"], sums["followed"]) * 100
        told |= {name: ratio(sums[name], sums["asked"]) * 100 for name in CHOICES if name in sums}
        return told | {kind: ratio(sums[f"{kind}:right"], sums[f"{kind}:asked"]) * 100 for kind in kinds}

    def extra(self, marks: Sequence[Mark], scoring: Scoring) -> dict[str, float]:
        """How far the answers to each group of questions are spread otherwise than the true ones (less is better): a
        chi-square, which no sums of marks tell."""
        gold: dict[str, Counter[str]] = defaultdict(Counter)
        said: dict[str, Counter[str]] = defaultdict(Counter)
        for mark in marks:
            if (group := mark.told["group"]) is not None:
                gold[group][mark.told["gold"]] += 1
                said[group][mark.told["said"]] += 1
        if not gold:
            return {}
        apart = {group: sum((said[group][a] - n) ** 2 / n for a, n in true.items()) for group, true in gold.items()}
        size = {group: true.total() for group, true in gold.items()}
        return {"distribution": sum(apart[group] * size[group] for group in gold) / sum(size.values()) / 100}

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """What Stanford's eval.py reads."""
        out = [{"questionId": q.id, "prediction": exported(answers[q.id].text)} for q in questions]
        return {"testdev_balanced_predictions.json": json.dumps(out).encode()}


def exported(text: str) -> str:
    return text.rstrip(".").lower()


def _kinds(question: str, types: Mapping[str, Any], steps: Sequence[Any], known: bool) -> Iterator[str]:
    """The groups that a question is counted in beside the whole. `known`: its program is there."""
    if structure := types.get("structural", ""):
        yield from (structure, "open" if structure == "query" else "binary")
    if meaning := types.get("semantic", ""):
        yield meaning
    if known:
        told = [f"{step.get('operation')}: {step.get('argument')}" for step in steps]
        yield f"steps.{sum(not any(end in step for end in NO_STEP) for step in told)}"
    yield f"words.{len(question.split())}"


BENCHES = (Gqa(),)
