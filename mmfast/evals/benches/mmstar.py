"""MMStar: 1,500 questions that need their picture, 250 of each of six abilities.

The official verdict is the first character, or the one behind "(", "option " or "the answer is "; it divides by 250 and
1,500 whatever was asked. `strict` takes the letter that stands alone, and divides by what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.letters import alone
from mmfast.evals.reading import LETTER, inside, listed, need, table

ABILITIES = {
    "coarse perception": ("image scene and topic", "image style & quality", "image emotion"),
    "fine-grained perception": ("object counting", "recognition", "localization"),
    "instance reasoning": (
        "single-instance reasoning",
        "cross-instance attribute reasoning",
        "cross-instance relation reasoning",
    ),
    "logical reasoning": ("code & sequence reasoning", "diagram reasoning", "common reasoning"),
    "science & technology": (
        "biology & chemistry & physics",
        "electronics & energy & mechanical eng.",
        "geography & earth science & agriculture",
    ),
    "math": ("geometry", "numeric commonsense and calculation", "statistical reasoning"),
}
EACH, ALL = 250, 1500
LETTERS = "ABCDEFGH"


class MmStar(Benchmark):
    name = "mmstar"
    about = "four options that need the picture, six abilities"
    wordings: ClassVar = {
        "llava": Wording(suffix=LETTER, decode=Decode(max_tokens=512), about="MMStar's own prompt for LLaVA: greedy")
    }
    files: ClassVar = {
        "questions": File(
            names=("MMStar.tsv", "mmstar.tsv"),
            what="its table",
            source="huggingface.co/datasets/Lin-Chen/MMStar (the table of VLMEvalKit)",
            licence="as its six sources",
        )
    }
    parsers_differ = True

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for row in table(data, "questions"):
            need(row, ("index", "question", "image", "answer", "category", "l2_category"), data, "questions")
            category, kind = row["category"], row["l2_category"]
            if kind not in ABILITIES.get(category, ()):
                raise ValueError(
                    f"{data.path('questions')}, index {row['index']}: MMStar has no ability {category} ({kind})"
                )
            choices = {letter: row[letter] for letter in LETTERS if letter in row}
            image = inside(f"{data.path('questions')}, index {row['index']}", f"{row['index']}.jpg", row["image"])
            hint = f"{row['hint']}\n" if "hint" in row else ""
            yield Question(
                id=row["index"],
                turns=(hint + row["question"] + listed(choices) + wording.suffix,),
                images=(image,),
                unit=row["index"],
                official={"index": row["index"]},
                truth={"answer": row["answer"], "category": category, "kind": kind},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        if len(questions) != ALL and not scoring.strict:
            scoring.notes.append(f"{len(questions)} questions, and MMStar divides by {ALL} whatever was asked")
        for question in questions:
            text, answer = answers[question.id].text, question.truth["answer"]
            good = alone(text, dict.fromkeys(LETTERS, "")) == answer if scoring.strict else officially(text, answer)
            category = question.truth["category"]
            names = ("all", category, f"{category}({question.truth['kind']})")
            sums = {f"{name}:{what}": n for name in names for what, n in (("asked", 1.0), ("right", float(good)))}
            if scoring.strict:
                sums["strict"] = 1.0
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"right": good})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        def share(name: str, of: float | None = None) -> Any:
            asked = sums.get(f"{name}:asked", 0.0)
            return ratio(sums.get(f"{name}:right", 0.0), asked if of is None or "strict" in sums else asked * 0 + of)

        out = {"final score": share("all", ALL)}
        for category, kinds in ABILITIES.items():
            out[category] = share(category, EACH)
            out |= {f"{category}({kind})": share(f"{category}({kind})") for kind in kinds}
        return out


def officially(text: str, answer: str) -> bool:
    """Whether the official script takes an answer for that letter."""
    said, letter = (t.lower().strip().replace("\n", " ") for t in (text, answer))
    if said[:1] == letter and letter:
        return True
    for start in ("(", "option ", "the answer is "):
        if said.startswith(start) and said[len(start) : len(start) + 1] == letter:
            return True
    return False


BENCHES = (MmStar(),)
