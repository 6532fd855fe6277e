"""MME: two questions a picture, of which one is true. A task's score is its accuracy plus the share of pictures whose
two questions are both answered right, each of 100; ten tasks make perception, four cognition.

The official verdict is the lower-cased answer's first four characters: "yes" in them, else "no" in them, else neither
("eyes" is a yes, "Nope" and "Now yes" are no). Pairs are lines 1 and 2, 3 and 4 of a task's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import SHORT

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
OFFICIAL = "Please answer yes or no."


def _task(task: str) -> File:
    return File(
        names=tuple(f"{folder}{task}.txt" for folder in ("", "Your_Results/", "eval_tool/Your_Results/")),
        what=f"the questions and answers of {task} (a line: image, question, Yes or No, with tabs)",
        source="MME's eval_tool, folder Your_Results (github.com/BradyFU/Awesome-Multimodal-Large-Language-Models)",
        licence="for academic research, on request to MME's authors",
    )


class Mme(Benchmark):
    name = "mme"
    about = "perception and cognition by yes or no, two questions a picture"
    wordings: ClassVar = {
        "llava": Wording(suffix=SHORT, decode=Decode(max_tokens=128), about="LLaVA's evaluation: greedy"),
        "official": Wording(suffix=f" {OFFICIAL}", decode=Decode(max_tokens=128), about="MME's own words"),
    }
    files: ClassVar = {task: _task(task) for task in (*PERCEPTION, *COGNITION)}
    parsers_differ = True
    layout = "mme"
    published = "perception: LLaVA-1.5 7B 1510.7, 13B 1531.3 (LLaVA docs/MODEL_ZOO.md)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for task in (*PERCEPTION, *COGNITION):
            lines = [line for line in data.read(task).decode("utf-8-sig").split("\n") if line.strip()]
            if len(lines) % 2:
                raise ValueError(f"{data.path(task)} has {len(lines)} lines: MME has two a picture")
            for number, line in enumerate(lines):
                cells = line.rstrip("\r").split("\t")
                if len(cells) < 3 or cells[2].lower().strip() not in ("yes", "no"):
                    raise ValueError(
                        f"{data.path(task)}, line {number + 1}: not image, question and Yes or No with tabs"
                    )
                image, text = cells[0], cells[1].removesuffix(OFFICIAL).rstrip()
                where = _image(data, task, image)
                yield Question(
                    id=f"{task}/{image}:{number % 2 + 1}",
                    turns=(text + wording.suffix,),
                    images=(data.picture(where),),
                    unit=f"{task}/{image}",
                    official={"task": task, "image": image, "question": cells[1], "question_id": where},
                    truth={
                        "yes": cells[2].lower().strip() == "yes",
                        "task": task,
                        "pair": number // 2,
                    },
                )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        right: dict[tuple[str, int], list[bool]] = {}
        for question in questions:
            said = (strictly if scoring.strict else officially)(answers[question.id].text)
            if said is None:
                scoring.counts["neither yes nor no"] += 1
            task, good = question.truth["task"], said == question.truth["yes"]
            pair = right.setdefault((task, question.truth["pair"]), [])
            pair.append(good)
            sums = {f"{task}:asked": 1.0, f"{task}:right": float(good)}
            if len(pair) == 2:  # the picture counts with its second question
                sums |= {f"{task}:pictures": 1.0, f"{task}:both": float(all(pair))}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "right": good})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        scores = {}
        for task in (*PERCEPTION, *COGNITION):
            asked, right, pictures, both = (
                sums.get(f"{task}:{what}", 0.0) for what in ("asked", "right", "pictures", "both")
            )
            scores[task] = ratio(right, asked) * 100 + ratio(both, pictures) * 100
        whole = {
            "perception": sum(scores[task] for task in PERCEPTION),
            "cognition": sum(scores[task] for task in COGNITION),
        }
        return whole | scores


def _image(data: Data, task: str, name: str) -> str:
    """Where the release has a picture: beside its task's questions, or in a folder of its own."""
    apart = f"{task}/images/{name}"
    return apart if (data.images / apart).exists() else f"{task}/{name}"


def officially(text: str) -> bool | None:
    start = text.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def strictly(text: str) -> bool | None:
    """The first word that is yes or no."""
    found = re.search(r"\b(yes|no)\b", text.lower())
    return None if found is None else found[0] == "yes"


BENCHES = (Mme(),)
