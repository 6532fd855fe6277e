"""GQA: short answers, compared exactly after LLaVA's export has dropped a full stop at the end and capitals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import SHORT, need, value


class Gqa(Benchmark):
    name = "gqa"
    about = "compositional questions about scene graphs"
    published = "LLaVA-1.5 7B 62.0, 13B 63.3 (LLaVA docs/MODEL_ZOO.md)"
    wordings: ClassVar = {
        "llava": Wording(suffix=SHORT, decode=Decode(max_tokens=128), about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = {
        "questions": File(
            names=("testdev_balanced_questions.json", "val_balanced_questions.json"),
            what="its questions with answers",
            source="cs.stanford.edu/people/dorarad/gqa/download.html",
            licence="CC BY 4.0",
        )
    }

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for name, row in value(data, "questions").items():
            need(row, ("question", "imageId", "answer"), data, "questions")
            kind = row.get("types", {}).get("structural", "")
            yield Question(
                id=name,
                turns=(row["question"] + wording.suffix,),
                images=(data.picture(f"{row['imageId']}.jpg"),),
                unit=row["imageId"],
                truth={"answer": row["answer"], "kind": kind},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        for question in questions:
            said = exported(answers[question.id].text)
            good, kind = float(said == question.truth["answer"]), question.truth["kind"]
            sums = {"asked": 1.0, "right": good} | ({f"{kind}:asked": 1.0, f"{kind}:right": good} if kind else {})
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "right": bool(good)})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        kinds = sorted(name.removesuffix(":asked") for name in sums if name.endswith(":asked"))
        return {"accuracy": ratio(sums["right"], sums["asked"]) * 100} | {
            kind: ratio(sums[f"{kind}:right"], sums[f"{kind}:asked"]) * 100 for kind in kinds
        }

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """What Stanford's eval.py reads."""
        out = [{"questionId": q.id, "prediction": exported(answers[q.id].text)} for q in questions]
        return {"testdev_balanced_predictions.json": json.dumps(out).encode()}


def exported(text: str) -> str:
    return text.rstrip(".").lower()


BENCHES = (Gqa(),)
