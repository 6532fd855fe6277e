"""POPE: is an object in the picture? Yes or no; "yes" is the positive class.

The official verdict looks at the words up to the first full stop: "No", "not" or "no" among them is a no, everything
else a yes ("NO", "isn't" and an empty answer too). There are two versions of the data (3 x 3,000 questions, and one
whose random part has 2,910): the files' hashes are part of a result. LLaVA's questions have no labels; they are in
POPE's own files, in the same order within each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import SHORT, absent, need, rows

PARTS = ("random", "popular", "adversarial")


def _labels(part: str) -> File:
    names = tuple(
        f"{folder}*pope_{part}.{kind}" for folder in ("", "coco/", "output/coco/") for kind in ("json", "jsonl")
    )
    return File(
        names=names,
        what="its questions with labels",
        source="github.com/AoiDragon/POPE, output/coco (LLaVA's figures: commit e3e3926)",
        licence="MIT",
        optional=True,
    )


class Pope(Benchmark):
    name = "pope"
    about = "objects by yes or no, sampled at random, by frequency, or to deceive"
    wordings: ClassVar = {
        "llava": Wording(suffix=SHORT, decode=Decode(max_tokens=128), about="LLaVA's evaluation: greedy"),
        "bare": Wording(decode=Decode(max_tokens=128), about="the question alone"),
    }
    files: ClassVar = {
        "questions": File(
            names=("llava_pope_test.jsonl",),
            what="LLaVA's questions, with parts",
            source="LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA)",
            licence="MIT",
            optional=True,
        )
    } | {part: _labels(part) for part in PARTS}
    parsers_differ = True
    published = "F1 of the three parts' mean: LLaVA-1.5 7B and 13B 85.9 (LLaVA docs/MODEL_ZOO.md)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        labels = {part: rows(data, part) for part in PARTS if data.path(part)}
        if data.path("questions"):
            listed = []
            for row in rows(data, "questions"):
                need(row, ("category", "question_id:id", "image", "text"), data, "questions")
                listed.append((row["category"], row["question_id"], row))
            asked = _joined(listed, labels, data)
        elif labels:
            asked = [
                (part, f"{part}{row.get('question_id', n)}", row)
                for part in labels
                for n, row in enumerate(labels[part], 1)
            ]
        else:
            raise absent(data, PARTS)
        for part, name, row in asked:
            need(row, ("image", "text", "label"), data, part)
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"POPE, {part} {name}: the label is {row['label']!r}, and must be yes or no")
            yield Question(
                id=str(name),
                turns=(row["text"].removesuffix(SHORT) + wording.suffix,),
                images=(data.picture(row["image"]),),
                unit=row["image"],
                official={"question_id": row.get("question_id", name), "category": part},
                truth={"yes": row["label"] == "yes", "part": part},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        parts = {part: sum(q.truth["part"] == part for q in questions) for part in PARTS}
        hashes = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(scoring.data.hashes.items()))
        told = ", ".join(f"{part} {count:,}" for part, count in parts.items() if count)
        scoring.notes.append(
            f"POPE's data: {told} questions ({hashes}); random has 2,910 in LLaVA's version, else 3,000"
        )
        for question in questions:
            text = answers[question.id].text
            said = strictly(text) if scoring.strict else officially(text)
            if said is None:
                scoring.counts["unparsed"] += 1
            true, part = question.truth["yes"], question.truth["part"]
            name = ("TP" if said else "FN") if true else ("FP" if said or said is None else "TN")
            sums = {f"{part}:{name}": 1.0, f"{part}:yes": float(bool(said))}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"said": said, "true": true})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        parts = [part for part in PARTS if any(name.startswith(f"{part}:") for name in sums)]
        out: dict[str, Any] = {}
        for part in parts:
            told = _of({k.removeprefix(f"{part}:"): v for k, v in sums.items() if k.startswith(f"{part}:")})
            out |= {f"{part}.{name}": value for name, value in told.items()}
        # The published figure is the mean of the three F1
        return out | {"f1": sum(out[f"{part}.f1"] for part in parts) / max(len(parts), 1)}


def _joined(
    asked: list[tuple[str, Any, dict[str, Any]]], labels: dict[str, list[dict[str, Any]]], data: Data
) -> list[tuple[str, Any, dict[str, Any]]]:
    """LLaVA's questions with the labels of POPE's files: in the order of each part, which must be about the same."""
    of = {part: [row for p, _, row in asked if p == part] for part in dict.fromkeys(p for p, _, _ in asked)}
    joined: list[tuple[str, Any, dict[str, Any]]] = []
    for part, questions in of.items():
        if all("label" in row for row in questions):
            joined += [(part, row["question_id"], row) for row in questions]
            continue
        if part not in labels:
            raise (
                absent(data, (part,))
                if part in PARTS
                else ValueError(f"llava_pope_test.jsonl has a part {part}; POPE has {', '.join(PARTS)}")
            )
        # Both must be the same questions in the same order
        if len(questions) != len(labels[part]):
            raise ValueError(
                f"llava_pope_test.jsonl has {len(questions):,} {part} questions, {data.path(part)} "
                f"{len(labels[part]):,}: these are two versions of POPE. LLaVA's goes with output/coco of commit "
                "e3e3926 (2,910 random questions)"
            )
        for row, label in zip(questions, labels[part], strict=True):
            texts = {_plain(row["text"]), _plain(label["text"])}
            if row["image"] != label["image"] or len(texts) > 1:
                raise ValueError(
                    f"llava_pope_test.jsonl, {row['question_id']} ({row['image']}: {row['text']!r}), is not the "
                    f"question of its place in {data.path(part)} ({label['image']}: {label['text']!r}): these are two "
                    "versions of POPE"
                )
            joined.append((part, row["question_id"], row | {"label": label["label"]}))
    return joined


def _plain(text: str) -> str:
    return text.removesuffix(SHORT).replace("imange", "image")


def _of(sums: Sums) -> dict[str, Any]:
    tp, fp, tn, fn = (sums.get(name, 0.0) for name in ("TP", "FP", "TN", "FN"))
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    everything = tp + fp + tn + fn
    return {
        "accuracy": ratio(tp + tn, everything),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(sums.get("yes", 0.0), everything),
    }


def officially(text: str) -> bool:
    """Whether the official script takes an answer for a yes."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def strictly(text: str) -> bool | None:
    """Yes or no as the first word that is either; None where there is none."""
    found = re.search(r"\b(yes|no|not|isn't|aren't|none|nope)\b", text.lower())
    return None if found is None else found[0] == "yes"


BENCHES = (Pope(),)
