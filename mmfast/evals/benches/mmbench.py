"""MMBench and MMBench-CN: options asked in every rotation; a question counts only if each of its rows is right.

A letter is read from an answer by VLMEvalKit's rule, today's or that of 2023 (letters.py); `strict` reads a letter that
stands alone. Where there is none, the flavour `exact` counts the question as wrong, and `judge` asks which option is
meant, three times at most, then draws one by lot as the official script does (`strict`: wrong). Rows are of one
question where their index is the same but for millions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode, Picture
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.letters import RULES, alone
from mmfast.evals.meant import PROMPTS, ask
from mmfast.evals.reading import LETTER, LETTER_CN, inside, listed, need, options, table
from mmfast.evals.sheet import workbook

SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
MILLION = 1_000_000
NOT_SENT = ("hint", "category", "source", "image", "comment", "l2-category")


def _files(*names: str) -> dict[str, File]:
    return {
        "questions": File(
            names=names,
            what="its table",
            source="download.openmmlab.com/mmclassification/datasets/mmbench",
            licence="Apache-2.0",
        ),
        "prompts": PROMPTS,
    }


class MmBench(Benchmark):
    name = "mmbench"
    about = "options in every rotation, over 20 abilities"
    flavours: ClassVar = ("exact", "exact-2023", "judge", "judge-2023")
    wordings: ClassVar = {
        "llava": Wording(suffix=LETTER, decode=Decode(max_tokens=1024), about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = _files(
        "mmbench_dev_2*.tsv", "mmbench_dev_en*.tsv", "mmbench_test_2*.tsv", "mmbench_test_en*.tsv", "MMBench_*EN*.tsv"
    )
    judge = "gpt-3.5-turbo-0613, only in the flavours judge"
    judged: ClassVar = ("judge", "judge-2023")
    layout = "mmbench"
    published = "dev, by the server: LLaVA-1.5 7B 64.3, 13B 67.7 (LLaVA docs/MODEL_ZOO.md)"
    parsers_differ = True
    chinese: ClassVar = False

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        listed_rows = table(data, "questions")
        rows = {row.get("index", ""): row for row in listed_rows}
        if len(rows) < len(listed_rows):
            raise ValueError(
                f"{data.path('questions')} has an index twice: {len(listed_rows)} rows, {len(rows)} indices"
            )
        for name, row in rows.items():
            need(row, ("index", "question", "image", "A"), data, "questions")
            if not name.isdigit():
                raise ValueError(f"{data.path('questions')}: index {name!r} is no number")
            group, choices = int(name) % MILLION, options(row)
            hint = row["hint"] + "\n" if row.get("hint", "nan").lower() not in ("nan", "none") else ""
            yield Question(
                id=name,
                turns=(hint + row["question"] + listed(choices) + wording.suffix,),
                images=(_picture(row, rows, data),),
                unit=str(group),
                official={"index": name, "question_id": name},
                truth={"group": group, "options": choices, "asked": row["question"], "answer": row.get("answer", "")}
                | {key: row.get(key, "") for key in ("category", "l2-category", "split")},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        if not all(question.truth["answer"] for question in questions):
            raise ValueError(
                f"{self.name}'s table has no answers: a test split is scored by its server only (upload file)"
            )
        kind, _, year = scoring.flavour.partition("-")
        rule = alone if scoring.strict else RULES[year or "today"]
        groups: dict[int, list[Question]] = {}
        for question in questions:
            groups.setdefault(question.truth["group"], []).append(question)
        said = {q.id: rule(answers[q.id].text, q.truth["options"]) for q in questions}
        scoring.counts["no letter"] += sum(not letter for letter in said.values())
        if kind == "judge":
            ask(scoring, groups, answers, said, rule=RULES[year or "today"], year=year, chinese=lambda _: self.chinese)
        several = len({q.truth["split"] for q in questions}) > 1
        for group, rows in groups.items():
            first = next((q for q in rows if int(q.id) == group), None)
            if first is None:
                continue  # as the official script: rotations without their question count nothing
            good = float(all(said[q.id] == q.truth["answer"] for q in rows))
            split = f"{first.truth['split']}." if several else ""
            abilities = [first.truth[key] for key in ("l2-category", "category") if first.truth[key]]
            names = [split + name for name in ("overall", *(SHORT_NAMES.get(a, a) for a in abilities))]
            sums = {f"{name}:{what}": n for name in names for what, n in (("asked", 1.0), ("right", good))}
            yield Mark(
                id=str(group),
                unit=str(group),
                sums=sums,
                told={"said": [said[q.id] for q in rows], "right": bool(good)},
            )

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        names = [name.removesuffix(":asked") for name in sums if name.endswith(":asked")]
        return {name: ratio(sums[f"{name}:right"], sums[f"{name}:asked"]) for name in names}

    def upload(self, questions: Sequence[Question], answers: Mapping[str, Answer], data: Data) -> dict[str, bytes]:
        """The workbook that the server takes, as LLaVA writes it."""
        rows, head = table(data, "questions"), data.read("questions").decode("utf-8-sig").split("\n", 1)[0]
        names = [name for name in head.rstrip("\r").split("\t") if name not in NOT_SENT]
        names.insert(min(6, len(names)), "prediction")
        told = [row | {"prediction": answers[row["index"]].text} for row in rows]
        return {f"{self.name}_upload.xlsx": workbook([names, *([row.get(name, "") for name in names] for row in told)])}


class MmBenchCn(MmBench):
    name = "mmbench-cn"
    about = "MMBench in Chinese"
    wordings: ClassVar = {
        "llava": Wording(suffix=LETTER_CN, decode=Decode(max_tokens=1024), about="LLaVA's evaluation: greedy")
    }
    files: ClassVar = _files("mmbench_dev_cn*.tsv", "mmbench_test_cn*.tsv", "MMBench_*CN*.tsv")
    published = "dev, by the server: LLaVA-1.5 7B 58.3, 13B 63.6 (LLaVA docs/MODEL_ZOO.md)"
    chinese: ClassVar = True


def _picture(row: Mapping[str, str], rows: Mapping[str, Mapping[str, str]], data: Data) -> Picture:
    """The image of a cell; a short cell names the row that has it."""
    cell = row["image"]
    if len(cell) <= 64 and cell in rows:
        cell = rows[cell]["image"]
    return inside(f"{data.path('questions')}, index {row['index']}", f"{row['index']}.jpg", cell)


BENCHES = (MmBench(), MmBenchCn())
