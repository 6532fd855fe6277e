"""SEED-Bench: one of four options, about images and about the middle frame of videos.

The official score is equality of the whole answer with the letter ("B." and " B" are wrong), pooled over all questions;
an unanswered one is wrong. `strict` takes the one letter that stands alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import LETTER, listed, need, rows, value


class Seed(Benchmark):
    name = "seed"
    about = "four options, over nine kinds of question about images and three about videos"
    wordings: ClassVar = {
        "llava": Wording(suffix=LETTER, decode=Decode(max_tokens=128), about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = {
        "questions": File(
            names=("SEED-Bench.json",),
            what="its questions",
            source="huggingface.co/datasets/AILab-CVC/SEED-Bench",
            licence="CC BY-NC 4.0",
        ),
        "llava": File(
            names=("llava-seed-bench.jsonl",),
            what="LLaVA's names of the frames",
            source="LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA)",
            licence="CC BY-NC 4.0",
            optional=True,
        ),
    }
    parsers_differ = True
    missing = "wrong"
    published = "LLaVA-1.5 7B 58.6, 13B 61.6 (LLaVA docs/MODEL_ZOO.md)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        whole = value(data, "questions", "question_type:object", "questions:list")
        kinds = {str(number): name for name, number in whole["question_type"].items()}
        frames = {}
        for row in rows(data, "llava") if data.path("llava") else ():
            need(row, ("question_id:id", "image"), data, "llava")
            frames[str(row["question_id"])] = row["image"]
        for row in whole["questions"]:
            letters = [f"choice_{letter}:id" for letter in "abcd"]
            need(row, ("question_id:id", "question", *letters, "answer", "question_type_id:id"), data, "questions")
            if str(row["question_type_id"]) not in kinds:
                raise ValueError(f"{data.path('questions')}: question_type has no {row['question_type_id']!r}")
            name, medium = str(row["question_id"]), str(row.get("data_type", "image"))
            # A video is shown by its middle frame, as LLaVA's extract_video_frames.py names it
            frame = f"SEED-Bench-video-image/{row['question_type_id']}_{name}.png"
            image = frames.get(name, frame if medium == "video" else f"SEED-Bench-image/{row.get('data_id', name)}")
            choices = {letter: str(row[f"choice_{letter.lower()}"]) for letter in "ABCD"}
            yield Question(
                id=name,
                turns=(row["question"] + listed(choices) + wording.suffix,),
                images=(data.picture(image),),
                unit=image,
                truth={"answer": row["answer"], "kind": kinds[str(row["question_type_id"])], "medium": medium},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        for question in questions:
            answer = answers.get(question.id)
            said = "" if answer is None else alone(answer.text) if scoring.strict else answer.text
            scoring.counts["unparsed"] += answer is not None and said not in ("A", "B", "C", "D")
            good = float(said == question.truth["answer"])
            sums: dict[str, float] = {}
            for group in ("total", question.truth["medium"], question.truth["kind"]):
                sums |= {f"{group}:asked": 1.0, f"{group}:right": good}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "right": bool(good)})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        groups = [name.removesuffix(":asked") for name in sums if name.endswith(":asked")]
        return {group: ratio(sums[f"{group}:right"], sums[f"{group}:asked"]) * 100 for group in groups}

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """What SEED-Bench's leaderboard takes."""
        out = (json.dumps({"question_id": q.id, "prediction": answers[q.id].text}) + "\n" for q in questions)
        return {"seed_upload.jsonl": "".join(out).encode()}


def alone(text: str) -> str:
    """The one letter that stands alone; "" where there are none or several."""
    found = set(re.findall(r"(?<![A-Za-z0-9'])([A-D])(?![A-Za-z0-9'])", text))
    return found.pop() if len(found) == 1 else ""


BENCHES = (Seed(),)
