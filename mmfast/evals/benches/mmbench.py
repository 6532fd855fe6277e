"""MMBench and MMBench-CN: options asked in every rotation; a question counts only if each of its rows is right.

A letter is read from an answer by VLMEvalKit's rule, today's or that of 2023 (letters.py); `strict` reads a letter that
stands alone. Where there is none, the flavour `exact` counts the question as wrong, and `judge` asks which option is
meant, three times at most, then draws one by lot as the official script does (`strict`: wrong). Rows are of one
question where their index is the same but for millions.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from mmfast.engines.base import Decode, Picture
from mmfast.evals.asking import call, read, script
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.letters import RULES, Rule, alone
from mmfast.evals.reading import LETTER, LETTER_CN, listed, need, options, table
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
TRIES = 3
NOT_SENT = ("hint", "category", "source", "image", "comment", "l2-category")


def _files(*names: str) -> dict[str, File]:
    home = "github.com/open-compass/VLMEvalKit, vlmeval/dataset/utils/multiple_choice.py"
    return {
        "questions": File(
            names=names,
            what="its table",
            source="download.openmmlab.com/mmclassification/datasets/mmbench",
            licence="Apache-2.0",
        ),
        "prompts": File(
            names=("multiple_choice.py", "mmbench_evals.py"),
            what="the judge's prompt",
            source=f"{home} (2023: lmms_eval/tasks/mmbench/mmbench_evals.py)",
            licence="Apache-2.0",
            optional=True,
        ),
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
    layout = "mmbench"
    published = "dev, by the server: LLaVA-1.5 7B 64.3, 13B 67.7 (LLaVA docs/MODEL_ZOO.md)"
    parsers_differ = True
    language: ClassVar = "en"

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
            self._ask(groups, answers, said, scoring)
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

    def _ask(
        self,
        groups: Mapping[int, list[Question]],
        answers: Mapping[str, Answer],
        said: dict[str, str],
        scoring: Scoring,
    ) -> None:
        """Fills in what the judge reads, row by row: a question that is wrong already is not asked about."""
        year = scoring.flavour.partition("-")[2]
        rule, known = RULES[year or "today"], script(scoring, "prompts")
        prompt = _prompt(known, year, self.language)
        while True:
            wrong = {
                g for g, rows in groups.items() if any(said[q.id] and said[q.id] != q.truth["answer"] for q in rows)
            }
            open_rows = [
                next((q for q in rows if not said[q.id]), None) for g, rows in groups.items() if g not in wrong
            ]
            asked = [question for question in open_rows if question is not None]
            if not asked:
                return
            choices = {q.id: q.truth["options"] for q in asked}
            calls = [call(q.id, _filled(prompt, q, answers[q.id].text)) for q in asked]
            for name, (letter, _) in read(scoring, calls, partial(_letter, rule, choices), TRIES).items():
                if letter is None and not scoring.strict:
                    scoring.counts["drawn by lot"] += 1
                    letter = random.Random(f"mmbench:{name}").choice([*choices[name], "E" if year else "Z"])
                said[name] = letter or "none"

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
    language: ClassVar = "cn"


def _picture(row: Mapping[str, str], rows: Mapping[str, Mapping[str, str]], data: Data) -> Picture:
    """The image of a cell; a short cell names the row that has it."""
    cell = row["image"]
    if len(cell) <= 64 and cell in rows:
        cell = rows[cell]["image"]
    try:
        return Picture(f"{row['index']}.jpg", base64.b64decode(cell, validate=True))
    except ValueError as error:
        raise ValueError(f"{data.path('questions')}, index {row['index']}: its image is no base64 ({error})") from None


def _prompt(known: Mapping[str, str], year: str, language: str) -> str:
    """The official prompt with three places, or ours."""
    if not known:
        return OWN
    cn = "_cn" if language == "cn" else ""
    name = "MMBench_Evaluator.build_prompt.tmpl" if year else f"build_prompt{cn}.tmpl"
    if known.get(name, "").count("{}") != 3:
        raise ValueError(f"the script of MMBench's prompts has no {name} with three places: is it of another version?")
    return known[name]


def _filled(prompt: str, question: Question, answer: str) -> str:
    choices = "".join(f"{letter}. {text}\n" for letter, text in question.truth["options"].items())
    return prompt.format(question.truth["asked"], f"There are several options: \n{choices}", answer)


def _letter(rule: Rule, choices: Mapping[str, Mapping[str, str]], name: str, reply: str) -> str | None:
    return rule(reply, choices[name]) or None


OWN = (
    "Which option does an answer mean? Reply with its letter alone, or with Z where the answer means none of them.\n"
    "Question: {}\n{}The answer: {}\nLetter: "
)

BENCHES = (MmBench(), MmBenchCn())
