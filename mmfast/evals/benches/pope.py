"""POPE: is an object in the picture? Yes or no; "yes" is the positive class.

The official verdict looks at the words up to the first full stop: "No", "not" or "no" among them is a no, everything
else a yes ("NO", "isn't" and an empty answer too). There are two versions of the data (3 x 3,000 questions, and one
whose random part has 2,910): the file's hash is part of a result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio


class Pope(Benchmark):
    name = "pope"
    about = "objects by yes or no, sampled at random, by frequency, or to deceive"
    wordings: ClassVar = {
        "llava": Wording(
            suffix="\nAnswer the question using a single word or phrase.",
            decode=Decode(max_tokens=128),
            about="LLaVA's evaluation: greedy",
        ),
        "bare": Wording(decode=Decode(max_tokens=128), about="the question alone"),
    }
    files: ClassVar = {
        "questions": File(
            names=("llava_pope_test.jsonl", "*pope*.json", "*pope*.jsonl"),
            what="its questions with labels",
            source="github.com/AoiDragon/POPE (output/coco), or LLaVA's eval.zip",
            licence="MIT",
        )
    }
    parsers_differ = True

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for number, line in enumerate(data.read("questions").decode().splitlines(), 1):
            row = json.loads(line)
            text = row["text"].removesuffix(SHORT)  # LLaVA's file has it already
            part = row.get("category", "")
            yield Question(
                id=f"{part}{row['question_id']}" if part else str(row["question_id"]),
                turns=(text + wording.suffix,),
                images=(data.picture(row["image"]),),
                unit=row["image"],
                truth={"yes": row["label"] == "yes", "part": part, "line": number},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        for question in questions:
            text = answers[question.id].text
            said = strictly(text) if scoring.strict else officially(text)
            if said is None:
                scoring.counts["unparsed"] += 1
            true = question.truth["yes"]
            name = ("TP" if said else "FN") if true else ("FP" if said or said is None else "TN")
            part = question.truth["part"]
            sums = {name: 1.0} | ({f"{part}:{name}": 1.0} if part else {})
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "true": true})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        parts = sorted({name.split(":")[0] for name in sums if ":" in name})
        out: dict[str, Any] = {}
        for part in parts or [""]:
            told = _of({k.removeprefix(f"{part}:"): v for k, v in sums.items() if k.startswith(f"{part}:") or not part})
            out |= {f"{part}.{name}" if part else name: value for name, value in told.items()}
        if parts:
            out["f1"] = sum(out[f"{part}.f1"] for part in parts) / len(parts)
        return out


def _of(sums: Sums) -> dict[str, Any]:
    tp, fp, tn, fn = (sums.get(name, 0.0) for name in ("TP", "FP", "TN", "FN"))
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    everything = tp + fp + tn + fn
    return {
        "accuracy": ratio(tp + tn, everything),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(tp + fp, everything),
    }


SHORT = "\nAnswer the question using a single word or phrase."


def officially(text: str) -> bool:
    """Whether the official script takes an answer for a yes."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def strictly(text: str) -> bool | None:
    """Yes or no as the first word that is either; None where there is none."""
    found = re.search(r"\b(yes|no|not|isn't|aren't|none|nope)\b", text.lower())
    return None if found is None else found[0] == "yes"


BENCHES = (Pope(),)
