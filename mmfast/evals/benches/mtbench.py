"""MT-Bench: 80 questions of two turns without pictures, rated from 1 to 10 or compared with a baseline by a judge.

`single`: the first [[x]] in the reply, else the first [x], is the rating ("a[0] is fine" is a 0); a reply without one
is left out; the average is over all kept turns, not of the two turns' means. `pairwise`: the judge sees both orders,
and a win is one that both name; an order without a verdict drops the pair. Maths, reasoning and coding are judged with
GPT-4's reference. `mt-bench-noise` asks the same with a picture of noise before the first turn, which the model sees
(mllm-dpo's run of it gave the model a placeholder and no picture).
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmfast.engines.base import Decode, Picture
from mmfast.evals.asking import own, replies
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.mtbench_judge import OWN, rated, strictly, turn_call, winner
from mmfast.evals.reading import need, rows

TEMPERATURE = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURE |= dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0)
OTHERWISE = 0.7
WITH_REFERENCE = ("math", "reasoning", "coding")
HOME = "github.com/lm-sys/FastChat, fastchat/llm_judge/data"
SIZE = 336  # of the noise, in pixels


class MtBench(Benchmark):
    name = "mt-bench"
    about = "80 questions of two turns, without pictures"
    flavours: ClassVar = ("single", "pairwise")
    wordings: ClassVar = {
        "fastchat": Wording(decode=Decode(max_tokens=1024), about="FastChat: a temperature for each category")
    }
    files: ClassVar = {
        "questions": File(
            names=("question.jsonl", "mt_bench/question.jsonl"),
            what="its questions",
            source=f"{HOME}/mt_bench",
            licence="Apache-2.0",
        ),
        "reference": File(
            names=("reference_gpt-4.jsonl", "reference_answer/gpt-4.jsonl", "mt_bench/reference_answer/gpt-4.jsonl"),
            what="GPT-4's answers to maths, reasoning and coding",
            source=f"{HOME}/mt_bench/reference_answer",
            licence="Apache-2.0",
        ),
        "prompts": File(
            names=("judge_prompts.jsonl",),
            what="the judge's prompts",
            source=HOME,
            licence="Apache-2.0",
            optional=True,
        ),
        "baseline": File(
            names=("baseline.jsonl", "model_answer/gpt-3.5-turbo.jsonl", "gpt-3.5-turbo.jsonl"),
            what="a baseline's answers",
            source=f"{HOME}/mt_bench/model_answer (python download_mt_bench_pregenerated.py)",
            licence="Apache-2.0",
            optional=True,
        ),
    }
    judge = "gpt-4"
    parsers_differ = True
    layout = "mtbench"
    less_is_better = ("loss_rate",)
    published = "mllm-dpo (13B): LLaVA 5.99, DPO 6.73, SteerLM 5.70 (its poster)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        references = _turns(data, "reference")
        for row in rows(data, "questions"):
            need(row, ("question_id:id", "category", "turns:texts"), data, "questions")
            name, category = str(row["question_id"]), row["category"]
            if category in WITH_REFERENCE and name not in references:
                raise ValueError(f"{data.path('reference')} has no answer to question {name} ({category})")
            temperature = TEMPERATURE.get(category, OTHERWISE)
            yield Question(
                id=name,
                turns=tuple(row["turns"]),
                images=self.images(name),
                decode={"temperature": temperature},
                truth={"category": category, "reference": references.get(name) if category in WITH_REFERENCE else None},
            )

    def images(self, name: str) -> tuple[Picture, ...]:
        return ()

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        templates: dict[str, dict[str, str]] = OWN
        if scoring.data.path("prompts"):
            templates = {}
            for row in rows(scoring.data, "prompts"):
                need(row, ("name", "system_prompt", "prompt_template"), scoring.data, "prompts")
                templates[row["name"]] = row
        else:
            own(scoring, "prompts")
        short = [q.id for q in questions if len(answers[q.id].turns) < len(q.turns)]
        if short:
            raise ValueError(f"{self.name}: the answer to question {short[0]} has fewer turns than the question")
        yield from (self._single if scoring.flavour == "single" else self._pairwise)(
            questions, answers, scoring, templates
        )

    def _single(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, Answer],
        scoring: Scoring,
        templates: Mapping[str, Mapping[str, str]],
    ) -> Iterator[Mark]:
        calls = [
            turn_call(f"{q.id}:{turn}", q, turn, "single", templates, {"": answers[q.id].turns})
            for q in questions
            for turn in _judged(q)
        ]
        said = replies(scoring, calls)
        for question in questions:
            told: list[float | None] = []
            sums: dict[str, float] = {}
            for turn in _judged(question):
                reply = said.get(f"{question.id}:{turn}")
                rating = None if reply is None else (strictly if scoring.strict else rated)(reply)
                told.append(rating)
                scoring.counts["unparsed"] += reply is not None and rating is None
                if rating is not None:
                    for name in (f"turn {turn}", "average", question.truth["category"]):
                        sums[f"{name}:asked"] = sums.get(f"{name}:asked", 0.0) + 1
                        sums[f"{name}:score"] = sums.get(f"{name}:score", 0.0) + rating
            yield Mark(id=question.id, unit=question.id, sums=sums, told={"ratings": told})

    def _pairwise(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, Answer],
        scoring: Scoring,
        templates: Mapping[str, Mapping[str, str]],
    ) -> Iterator[Mark]:
        if scoring.data.path("baseline") is None:
            file = self.files["baseline"]
            names = " or ".join(file.names)
            raise ValueError(f"{scoring.data.folder} has no {names}: pairwise needs {file.what} ({file.source})")
        baseline = _turns(scoring.data, "baseline")
        calls = []
        for question in questions:
            if len(baseline.get(question.id, ())) < len(question.turns):
                raise ValueError(f"{scoring.data.path('baseline')} has no full answer to question {question.id}")
            pair = (answers[question.id].turns, baseline[question.id])
            for turn in _judged(question):
                for order, (a, b) in enumerate((pair, pair[::-1]), 1):
                    sides = {"a": a, "b": b}
                    calls.append(
                        turn_call(f"{question.id}:{turn}:{order}", question, turn, "pairwise", templates, sides)
                    )
        said = replies(scoring, calls)
        for question in questions:
            told, sums = [], {"win": 0.0, "loss": 0.0, "tie": 0.0}
            for turn in _judged(question):
                one, other = (winner(said.get(f"{question.id}:{turn}:{order}", "")) for order in (1, 2))
                if one is None or other is None:
                    scoring.counts["unparsed"] += 1
                    told.append("")
                    continue
                # Ours is A in the first order and B in the second
                same = (one, other) in (("A", "B"), ("B", "A"))
                told.append("tie" if not same else "win" if one == "A" else "loss")
                sums[told[-1]] += 1
            yield Mark(id=question.id, unit=question.id, sums=sums, told={"verdicts": told})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        if flavour == "pairwise":
            win, loss, tie = sums["win"], sums["loss"], sums["tie"]
            return {
                "win_rate": ratio(win, win + loss + tie),
                "loss_rate": ratio(loss, win + loss + tie),
                "win_rate_adjusted": ratio(win + 0.5 * tie, win + loss + tie),
            }
        names = [name.removesuffix(":asked") for name in sums if name.endswith(":asked")]
        return {name: ratio(sums[f"{name}:score"], sums[f"{name}:asked"]) for name in names}


class MtBenchNoise(MtBench):
    name = "mt-bench-noise"
    about = "the same with a picture of noise before the first turn"
    published = "none that can stand beside it: mllm-dpo's model saw a placeholder and no picture"

    def images(self, name: str) -> tuple[Picture, ...]:
        """Uniform noise, another for each question."""
        from PIL import Image

        noise = np.random.default_rng(random.Random(f"mt-bench-noise:{name}").getrandbits(63))
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(out, "PNG")
        return (Picture(f"noise-{name}.png", out.getvalue()),)


def _turns(data: Data, role: str) -> dict[str, tuple[str, ...]]:
    """The answers of a file of FastChat's, of its first choice."""
    found = {}
    for row in rows(data, role):
        need(row, ("question_id:id", "choices:list"), data, role)
        try:
            found[str(row["question_id"])] = tuple(row["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{data.path(role)}, question {row['question_id']}: no choice with turns") from None
    return found


def _judged(question: Question) -> range:
    """The turns that are judged: the second only where there are two."""
    return range(1, 3 if len(question.turns) == 2 else 2)


BENCHES = (MtBench(), MtBenchNoise())
