"""ScienceQA: school questions with two to five options, half of them with a picture.

The official verdict takes a letter from A to E alone, or "X. ..." at the start, or the one "The answer is X." there is;
a question that was not answered is wrong and counts as one without a picture. The quoted number is IMG-Accuracy, over
the questions whose prompt had a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import LETTER, listed, need, value

OPTIONS = "ABCDE"
SOURCE = "github.com/lupantech/ScienceQA, data/scienceqa"


class ScienceQa(Benchmark):
    name = "scienceqa"
    about = "school science, one option of several"
    wordings: ClassVar = {
        "llava": Wording(suffix=LETTER, decode=Decode(max_tokens=1024), about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = {
        "problems": File(names=("problems.json",), what="its problems", source=SOURCE, licence="CC BY-NC-SA 4.0"),
        "split": File(names=("pid_splits.json",), what="its splits", source=SOURCE, licence="CC BY-NC-SA 4.0"),
    }
    parsers_differ = True
    missing = "wrong"
    published = "IMG-Accuracy: LLaVA-1.5 7B 66.8, 13B 71.6 (LLaVA docs/MODEL_ZOO.md; its 13B answers give 71.64 here)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        problems, splits = value(data, "problems"), value(data, "split", "test:texts")
        for name in splits["test"]:
            if name not in problems:
                raise ValueError(f"{data.path('problems')} has no problem {name} of the split test")
            problem = problems[name]
            need(problem, ("question", "choices:texts", "answer:int", "hint", "image:any"), data, "problems")
            if not 0 <= problem["answer"] < len(problem["choices"]) <= len(OPTIONS):
                raise ValueError(
                    f"{data.path('problems')}, problem {name}: its answer is none of {OPTIONS}, or it has more"
                )
            choices = dict(zip(OPTIONS, problem["choices"], strict=False))
            hint = f"Context: {problem['hint']}\n" if problem["hint"] else ""
            images = (data.picture(f"{name}/{problem['image']}"),) if problem["image"] else ()
            yield Question(
                id=name,
                turns=((hint + problem["question"] + listed(choices)).strip() + wording.suffix,),
                images=images,
                unit=name,
                truth={
                    "letter": OPTIONS[problem["answer"]],
                    "options": "".join(choices),
                    "subject": problem.get("subject", ""),
                },
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        for question in questions:
            answer = answers.get(question.id)
            said = (strictly if scoring.strict else officially)(answer.text if answer else "FAILED")
            if said not in tuple(question.truth["options"]):
                scoring.counts["unparsed"] += answer is not None
            good = said == question.truth["letter"] and said in question.truth["options"]
            # The official script looks for the picture in the prompt that stands beside an answer
            prompt = answer.meta.get("prompt") if answer else ""
            seen = "<image>" in prompt if isinstance(prompt, str) else bool(question.images)
            sums = {"asked": 1.0, "right": float(good)}
            if seen:
                sums |= {"img:asked": 1.0, "img:right": float(good)}
            if question.truth["subject"]:
                sums |= {f"{question.truth['subject']}:asked": 1.0, f"{question.truth['subject']}:right": float(good)}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "right": good})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        subjects = sorted(name.partition(":")[0] for name in sums if name.endswith(":asked") and name != "img:asked")
        return {
            "img_accuracy": ratio(sums.get("img:right", 0.0), sums.get("img:asked", 0.0)) * 100,
            "accuracy": ratio(sums["right"], sums["asked"]) * 100,
        } | {name: ratio(sums[f"{name}:right"], sums[f"{name}:asked"]) * 100 for name in subjects}


def officially(text: str) -> str:
    """The letter that the official script reads; "FAILED" where it reads none."""
    if len(text) == 1 and text in OPTIONS:
        return text
    if len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else "FAILED"


def strictly(text: str) -> str:
    """The one letter that stands alone, in brackets or not; "FAILED" where there are none or several."""
    found = set(re.findall(r"(?<![A-Za-z0-9'])([A-E])(?![A-Za-z0-9'])", text))
    return found.pop() if len(found) == 1 else "FAILED"


BENCHES = (ScienceQa(),)
