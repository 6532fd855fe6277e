"""HallusionBench: questions about figures and their altered twins, half of which can be answered without looking.

The flavour `official` asks a judge whether an answer agrees with the reference: correct, incorrect or unclear. Without
its figure a question of the part VS may be unclear and counts. aAcc is over questions, qAcc over questions right for
all their figures, fAcc over figures with all questions right (VS without figure left out); "easy" and "hard" are over
the pairs of the original and of the altered figures, though the official table calls them aAcc. Whether two answers say
the same is asked only where it tells a language hallucination from a visual one. `yes-no` is VLMEvalKit's: yes or no
among the words, over questions with a figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.asking import script
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.hallusion_judge import blamed_for, checked, good_verdicts
from mmfast.evals.reading import SHORT, need, rows
from mmfast.evals.vqa_text import without_punctuation

KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")


class Hallusion(Benchmark):
    name = "hallusionbench"
    about = "figures and their altered twins: language hallucination and visual illusion"
    flavours: ClassVar = ("official", "yes-no")
    wordings: ClassVar = {
        "bare": Wording(decode=Decode(max_tokens=512), about="the question alone; how to ask is left to the user"),
        "short": Wording(suffix=SHORT, decode=Decode(max_tokens=128), about="LLaVA's suffix for short answers"),
    }
    files: ClassVar = {
        "questions": File(
            names=("HallusionBench.json",),
            what="its questions",
            source="github.com/tianyi-lab/HallusionBench (figures: hallusion_bench.zip there)",
            licence="BSD-3-Clause",
        ),
        "prompts": File(
            names=("utils.py",),
            what="the judge's prompts",
            source="github.com/tianyi-lab/HallusionBench",
            licence="BSD-3-Clause",
            optional=True,
        ),
    }
    judge = "gpt-4 at its default temperature"
    judged: ClassVar = ("official",)
    less_is_better = ("figures_wrong", "figures_inconsistent", "fp_ratio")
    published = "GPT-4V: aAcc 65.28, qAcc 28.79, fAcc 39.88, easy 75.60, hard 37.67 (HallusionBench's README)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for row in rows(data, "questions"):
            need(
                row,
                (*(f"{key}:id" for key in KEYS), "visual_input:id", "question", "gt_answer:id", "gt_answer_details"),
                data,
                "questions",
            )
            known = {key: str(row[key]) for key in (*KEYS, "visual_input", "gt_answer")}
            category, kind, group, figure, asked = (known[key] for key in KEYS)
            seen = known["visual_input"] != "0"
            if known["gt_answer"] not in ("0", "1"):
                raise ValueError(f"{data.path('questions')}: gt_answer is {known['gt_answer']!r}, and must be 0 or 1")
            yield Question(
                id="_".join((category, kind, group, figure, asked)),
                turns=(row["question"] + wording.suffix,),
                images=(data.picture(f"{category}/{kind}/{group}_{figure}.png"),) if seen else (),
                official={key: row[key] for key in KEYS},
                unit=f"{category}_{kind}_{group}",  # a figure and its twins stand or fall together
                truth=known
                | {"pair": f"{category}_{kind}_{group}_{asked}", "figure": f"{category}_{kind}_{group}_{figure}"}
                | {"asked": row["question"], "reference": row["gt_answer_details"]},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        if scoring.flavour == "yes-no":
            questions = [q for q in questions if q.truth["visual_input"] != "0"]
            said = {q.id: yes_or_no(answers[q.id].text) for q in questions}
            scoring.counts["neither yes nor no"] += sum(not word for word in said.values())
            right = {q.id: said[q.id] == ("yes" if q.truth["gt_answer"] == "1" else "no") for q in questions}
            blamed: dict[str, str] = {}
        else:
            prompts = script(scoring, "prompts")
            said = checked(questions, answers, scoring, prompts)
            questions = [q for q in questions if q.id in said]  # the rest failed, and the judge was allowed to
            right = {q.id: said[q.id] in good_verdicts(q) for q in questions}
            blamed = blamed_for(questions, answers, said, scoring, prompts)
        # What is counted once a group goes with the group's first question
        groups: dict[tuple[str, str], list[bool]] = {}
        for question in questions:
            for group in _groups(question):
                groups.setdefault(group, []).append(right[question.id])
        first: set[tuple[str, str]] = set()
        for question in questions:
            part, good = question.truth["category"], right[question.id]
            sums: defaultdict[str, float] = defaultdict(float)
            for name in ("aAcc", f"{part}.aAcc"):
                sums |= {f"{name}:asked": 1.0, f"{name}:right": float(good)}
            sums["gt"] = float(question.truth["gt_answer"])
            sums["as gt"] = float(int(good) == int(question.truth["gt_answer"]))
            sums["wrong"], sums["wrong gt"] = float(not good), float(not good and question.truth["gt_answer"] == "1")
            for kind in ("LH", "VI", "Mix"):
                sums[kind] = float(blamed.get(question.id) == kind)
            for group in set(_groups(question)) - first:
                first.add(group)
                kind, whole = group[0], groups[group]
                for name in (kind, f"{part}.{kind}"):
                    sums[f"{name}:asked"] += 1.0
                    sums[f"{name}:right"] += float(all(whole))
                    sums[f"{name}:none"] += float(not any(whole))
            told = {"said": said[question.id], "right": good, "blamed": blamed.get(question.id, "")}
            yield Mark(id=question.id, unit=question.unit, sums=dict(sums), told=told)

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        def share(name: str, what: str = "right") -> Any:
            return ratio(sums.get(f"{name}:{what}", 0.0), sums.get(f"{name}:asked", 0.0)) * 100

        parts = ("", "VD.", "VS.")
        names = ("aAcc", "qAcc", "fAcc") if flavour == "yes-no" else ("aAcc", "qAcc", "fAcc", "easy", "hard")
        out = {part + name: share(part + name) for part in parts for name in names}
        if flavour == "yes-no":
            return out
        blame = sums["LH"] + sums["VI"] + sums["Mix"]
        return out | {
            "yes_no_bias": ratio(sums["as gt"], sums["aAcc:asked"]) - ratio(sums["gt"], sums["aAcc:asked"]),
            "fp_ratio": ratio(sums["wrong"] - sums["wrong gt"], sums["wrong"]),
            "figures_wrong": share("fAcc", "none"),
            "figures_inconsistent": 100 - share("fAcc") - share("fAcc", "none"),
            **{kind: ratio(sums[kind], blame) * 100 for kind in ("LH", "VI", "Mix")},
        }


def _groups(question: Question) -> list[tuple[str, str]]:
    truth = question.truth
    found = [("qAcc", truth["pair"]), ("hard" if truth["visual_input"] == "2" else "easy", truth["pair"])]
    if truth["category"] != "VS" or truth["figure_id"] != "0":
        found.append(("fAcc", truth["figure"]))
    return found


def yes_or_no(text: str) -> str:
    """VLMEvalKit's: "yes" or "no" where one of them is among the words and the other is not; "" else."""
    words = set(without_punctuation(text.lower(), r"\d,\d", r"(?<!\d)\.(?!\d)").split()) & {"yes", "no"}
    return words.pop() if len(words) == 1 else ""


BENCHES = (Hallusion(),)
