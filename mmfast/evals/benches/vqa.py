"""VQAv2 and VizWiz: an answer counts as far as ten people gave it (vqa_text.py), and the files for servers. What they
share with TextVQA (textvqa.py).

The flavours are two normalisers: `m4c`, which LLaVA uses, and `official`, VQA's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import SHORT, need, rows, value
from mmfast.evals.vqa_text import evalai, m4c, official

SCORES = {"m4c": m4c, "official": official}
GREEDY = Decode(max_tokens=128)
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


class Vqa(Benchmark):
    """What the three have in common: marks, figures, and the file for a server."""

    flavours: ClassVar = ("m4c", "official")

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        if not any(question.truth["people"] for question in questions):
            raise ValueError(f"{self.name}'s data has no answers of people: a test split is scored by its server only")
        for question in questions:
            people = question.truth["people"]
            if scoring.flavour == "m4c" and len(people) != 10:
                raise ValueError(
                    f"{self.name}, question {question.id}: {len(people)} answers of people, and m4c wants 10"
                )
            text = answers[question.id].text
            score = SCORES[scoring.flavour](text, people)
            sums = {"asked": 1.0, "score": score}
            if question.truth.get("kind"):
                sums |= {f"{question.truth['kind']}:asked": 1.0, f"{question.truth['kind']}:score": score}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"score": score})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        kinds = sorted(name.removesuffix(":asked") for name in sums if name.endswith(":asked"))
        return {"accuracy": ratio(sums["score"], sums["asked"]) * 100} | {
            kind: ratio(sums[f"{kind}:score"], sums[f"{kind}:asked"]) * 100 for kind in kinds
        }

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """The file that its server takes, as LLaVA writes it: normalised answers."""
        out = [{"question_id": q.truth["row"], "answer": evalai(answers[q.id].text)} for q in questions]
        return {f"{self.name}_upload.json": json.dumps(out).encode()}


def people_said(answers: Any, data: Data) -> list[str]:
    """What people said: texts, or objects with an answer."""
    told = answers if isinstance(answers, list) else [None]
    said = [one.get("answer") if isinstance(one, dict) else one for one in told]
    texts = [one for one in said if isinstance(one, str)]
    if len(texts) < len(said):
        raise ValueError(f"{data.folder}: people's answers to a question are {str(answers)[:60]!r}, and no texts")
    return texts


class VqaV2(Vqa):
    name = "vqav2"
    about = "short answers about COCO's pictures"
    published = "test-dev: LLaVA-1.5 7B 78.5, 13B 80.0 (LLaVA docs/MODEL_ZOO.md)"
    flavours: ClassVar = ("official", "m4c")
    wordings: ClassVar = {"llava": Wording(suffix=SHORT, decode=GREEDY, about="LLaVA's evaluation: greedy")}
    files: ClassVar = {
        "questions": File(
            names=("v2_OpenEnded_mscoco_*_questions.json", "llava_vqav2_mscoco_test-dev2015.jsonl"),
            what="its questions",
            source="visualqa.org/download, or LLaVA's eval.zip",
            licence="CC BY 4.0",
        ),
        "answers": File(
            names=("v2_mscoco_*_annotations.json",),
            what="what people answered",
            source="visualqa.org/download",
            licence="CC BY 4.0",
            optional=True,
        ),
        "whole": File(
            names=("llava_vqav2_mscoco_test2015.jsonl",),
            what="the questions of the whole test split, which the server wants answered",
            source="LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA)",
            licence="CC BY 4.0",
            optional=True,
        ),
    }

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        path = data.path("questions")
        assert path is not None
        if path.suffix == ".jsonl":  # LLaVA's: a test split, its suffix in place
            for row in rows(data, "questions"):
                need(row, ("question_id:id", "image", "text"), data, "questions")
                yield Question(
                    id=str(row["question_id"]),
                    turns=(row["text"].removesuffix(SHORT) + wording.suffix,),
                    images=(data.picture(row["image"]),),
                    unit=row["image"],
                    truth={"people": [], "row": row["question_id"]},
                )
            return
        # VQA's own files: questions, and what people answered where that is known
        whole = value(data, "questions", "questions:list")
        split = str(whole.get("data_subtype", "val2014"))
        people = {}
        for row in value(data, "answers", "annotations:list")["annotations"] if data.path("answers") else ():
            need(row, ("question_id:id", "answers:list"), data, "answers")
            people[row["question_id"]] = row
        for row in whole["questions"]:
            need(row, ("question_id:id", "image_id:int", "question"), data, "questions")
            known = people.get(row["question_id"], {})
            if people and not known:
                raise ValueError(f"{data.path('answers')} has no question {row['question_id']}: it is of another split")
            image = f"COCO_{split.replace('test-dev', 'test')}_{row['image_id']:012d}.jpg"
            yield Question(
                id=str(row["question_id"]),
                turns=(row["question"] + wording.suffix,),
                images=(data.picture(image),),
                unit=image,
                truth={
                    "people": people_said(known.get("answers", []), data),
                    "kind": known.get("answer_type", ""),
                    "row": row["question_id"],
                },
            )

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """Where the whole test split is known, what was not asked is answered by an empty text, as LLaVA does."""
        asked = {q.truth["row"]: evalai(answers[q.id].text) for q in questions}
        names = [row["question_id"] for row in rows(data, "whole")] if data.path("whole") else list(asked)
        out = [{"question_id": name, "answer": asked.get(name, "")} for name in names]
        return {f"{self.name}_upload.json": json.dumps(out).encode()}


class VizWiz(Vqa):
    name = "vizwiz"
    about = "questions of blind people about their pictures; many cannot be answered"
    published = "test: LLaVA-1.5 7B 50.0, 13B 53.6 (LLaVA docs/MODEL_ZOO.md)"
    wordings: ClassVar = {
        "llava": Wording(suffix=UNANSWERABLE + SHORT, decode=GREEDY, about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = {
        "questions": File(
            names=("val.json", "test.json"),
            what="its questions",
            source="vizwiz.org/tasks-and-datasets/vqa (Annotations.zip)",
            licence="CC BY 4.0",
        )
    }

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for number, row in enumerate(rows(data, "questions")):
            need(row, ("image", "question"), data, "questions")
            yield Question(
                id=str(number),
                official={"question_id": number, "image": row["image"]},
                turns=(row["question"].capitalize() + wording.suffix,),
                images=(data.picture(row["image"]),),
                unit=row["image"],
                truth={
                    "people": people_said(row.get("answers", []), data),
                    "kind": row.get("answer_type", ""),
                    "row": row["image"],
                },
            )

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        out = [{"image": q.truth["row"], "answer": evalai(answers[q.id].text)} for q in questions]
        return {f"{self.name}_upload.json": json.dumps(out).encode()}


BENCHES = (VqaV2(), VizWiz())
