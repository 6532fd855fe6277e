"""Q-Bench (A1, perception of low-level vision): one of two to four options about a picture's quality.

Its test answers are not public: the file of responses goes to its authors. For the dev split a letter is read by
VLMEvalKit's rule of today or of 2023 (letters.py), and `judge` asks what an answer without one means, as VLMEvalKit
does. The authors' own way, GPT's comparison of the texts by five votes, is published in words and in no script. LLaVA's
script for it does not pad the picture: it crops its middle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.letters import RULES
from mmfast.evals.meant import PROMPTS, ask
from mmfast.evals.reading import need, rows

CHOOSE, CHOOSE_CN = "\nChoose between one of the options as follows:", "\\在下列选项中选择一个:"  # so in LLaVA's script


class QBench(Benchmark):
    name = "qbench"
    about = "low-level vision: distortions, colour, light, by options"
    flavours: ClassVar = ("today", "2023", "judge")
    wordings: ClassVar = {
        "llava": Wording(suffix=CHOOSE, decode=Decode(max_tokens=1024), about="LLaVA's script for it: greedy"),
        "llava-zh": Wording(suffix=CHOOSE_CN, decode=Decode(max_tokens=1024), about="the same for the Chinese file"),
    }
    files: ClassVar = {
        "questions": File(
            names=("llvisionqa_*.json", "质衡-问答-*.json"),
            what="its questions (LLVisionQA)",
            source="huggingface.co/datasets/nanyangtu/LLVisionQA-QBench",
            licence="S-Lab licence 1.0, not for commerce",
        ),
        "prompts": PROMPTS,
    }
    judge = "the judge of VLMEvalKit, only in the flavour judge"
    judged: ClassVar = ("judge",)

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for number, row in enumerate(rows(data, "questions")):
            need(row, ("img_path", "question", "candidates:texts"), data, "questions")
            if len(row["candidates"]) > 4:
                raise ValueError(f"{data.path('questions')}, row {number} has more than four candidates")
            choices = dict(zip("ABCD", map(str, row["candidates"]), strict=False))
            options = "".join(f"{letter}. {text}\n" for letter, text in choices.items())
            correct = [letter for letter, text in choices.items() if text == row.get("correct_ans")]
            if "correct_ans" in row and len(correct) != 1:
                raise ValueError(
                    f"{data.path('questions')}, row {number}: {row['correct_ans']!r} is not one of its candidates"
                )
            yield Question(
                id=str(number),
                turns=(f"{row['question']}{wording.suffix}\n{options}",),
                images=(data.picture(row["img_path"]),),
                unit=row["img_path"],
                official={"img_path": row["img_path"], "question": row["question"]},
                truth={"options": choices, "answer": "".join(correct), "row": row, "asked": row["question"]}
                | {key: row[key] for key in ("type", "concern") if key in row},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        if not all(question.truth["answer"] for question in questions):
            raise ValueError("qbench's test split has no answers: send its authors the file of responses (upload)")
        rule = RULES["2023" if scoring.flavour == "2023" else "today"]
        letters = {q.id: rule(answers[q.id].text, q.truth["options"]) for q in questions}
        scoring.counts["no letter"] += sum(not letter for letter in letters.values())
        if scoring.flavour == "judge":
            ask(scoring, {q.id: [q] for q in questions}, answers, letters, rule=rule, chinese=_chinese)
        for question in questions:
            said = letters[question.id]
            good = float(said == question.truth["answer"])
            groups = ["all", *(f"{key}.{question.truth[key]}" for key in ("type", "concern") if key in question.truth)]
            sums = {f"{group}:{what}": n for group in groups for what, n in (("asked", 1.0), ("right", good))}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "right": bool(good)})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        groups = sorted(name.removesuffix(":asked") for name in sums if name.endswith(":asked"))
        told = {group: ratio(sums[f"{group}:right"], sums[f"{group}:asked"]) for group in groups}
        return {"accuracy": told.pop("all")} | told

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """The rows with responses, one a line (LLaVA's script writes them without line ends)."""
        out = (
            json.dumps(q.truth["row"] | {"response": answers[q.id].text}, ensure_ascii=False) + "\n" for q in questions
        )
        return {"qbench_responses.jsonl": "".join(out).encode()}


def _chinese(question: Question) -> bool:
    return re.search("[\u4e00-\u9fff]", question.truth["asked"]) is not None


BENCHES = (QBench(),)
