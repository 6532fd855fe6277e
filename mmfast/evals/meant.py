"""Which option an answer means where no letter can be read in it: VLMEvalKit asks a judge, three times at most, then
draws one by lot (`strict`: none is meant, and the question is wrong)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from mmfast.evals.asking import call, read, script
from mmfast.evals.base import Answer, File, Question, Scoring
from mmfast.evals.letters import Rule

K = TypeVar("K")
TRIES = 3
HOME = "github.com/open-compass/VLMEvalKit, vlmeval/dataset/utils/multiple_choice.py"
PROMPTS = File(
    names=("multiple_choice.py", "mmbench_evals.py"),
    what="the judge's prompt",
    source=f"{HOME} (2023: lmms_eval/tasks/mmbench/mmbench_evals.py)",
    licence="Apache-2.0",
    optional=True,
)
OWN = (
    "Which option does an answer mean? Reply with its letter alone, or with Z where the answer means none of them.\n"
    "Question: {}\n{}The answer: {}\nLetter: "
)


def ask(
    scoring: Scoring,
    groups: Mapping[K, list[Question]],
    answers: Mapping[str, Answer],
    said: dict[str, str],
    *,
    rule: Rule,
    year: str = "",
    chinese: Callable[[Question], bool],
) -> None:
    """Fills the letters that the judge reads into `said`, row by row of each group: one that is wrong already is not
    asked about. A question's truth has its options, what was asked and the answer. `chinese`: which prompt it has."""
    known = script(scoring, "prompts")
    while True:
        wrong = {g for g, rows in groups.items() if any(said[q.id] and said[q.id] != q.truth["answer"] for q in rows)}
        open_rows = [next((q for q in rows if not said[q.id]), None) for g, rows in groups.items() if g not in wrong]
        asked = [question for question in open_rows if question is not None]
        if not asked:
            return
        choices = {q.id: q.truth["options"] for q in asked}
        calls = [call(q.id, _filled(_prompt(known, year, chinese(q)), q, answers[q.id].text)) for q in asked]
        for name, (letter, _) in read(scoring, calls, partial(_letter, rule, choices), TRIES).items():
            if letter is None and not scoring.strict:
                scoring.counts["drawn by lot"] += 1
                lot = random.Random(f"{scoring.data.bench.name}:{name}")
                letter = lot.choice([*choices[name], "E" if year else "Z"])
            said[name] = letter or "none"


def _prompt(known: Mapping[str, str], year: str, chinese: bool) -> str:
    """The official prompt with three places, or ours."""
    if not known:
        return OWN
    name = "MMBench_Evaluator.build_prompt.tmpl" if year else f"build_prompt{'_cn' if chinese else ''}.tmpl"
    if known.get(name, "").count("{}") != 3:
        raise ValueError(f"the script of MMBench's prompts has no {name} with three places: is it of another version?")
    return known[name]


def _filled(prompt: str, question: Question, answer: str) -> str:
    choices = "".join(f"{letter}. {text}\n" for letter, text in question.truth["options"].items())
    return prompt.format(question.truth["asked"], f"There are several options: \n{choices}", answer)


def _letter(rule: Rule, choices: Mapping[str, Mapping[str, str]], name: str, reply: str) -> str | None:
    return rule(reply, choices[name]) or None
