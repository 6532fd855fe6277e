"""RefoMB: a judge compares the model's answer with GPT-4V's, by a description of the image: 0, 1/2 or 1.

The first [[A]], [[B]] or [[C]] in the reply is the verdict; the official script asks for ever where there is none, we
ask five times, then leave the answer out and count it. The flavour `hallucination` has a second pass over the reviews,
which tells who hallucinates less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.asking import call, own, read
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import need, prompts, rows

TRIES, TOKENS = 5, 2048
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
SYSTEM_AGAIN = "You are a helpful and precise assistant."
VERDICT = {"A": -1, "B": 1, "C": 0}  # A is GPT-4V
RLAIFV = "github.com/RLHF-V/RLAIF-V"


class RefoMb(Benchmark):
    name = "refomb"
    about = "99 open questions of eight kinds, against GPT-4V"
    flavours: ClassVar = ("overall", "hallucination")
    wordings: ClassVar = {
        "rlaif-v": Wording(decode=Decode(max_tokens=1024, beams=3), about="RLAIF-V: three beams"),
        "greedy": Wording(decode=Decode(max_tokens=1024), about="the question alone: greedy"),
    }
    files: ClassVar = {
        "questions": File(
            names=("gpt4v_RefoMB_*.jsonl",),
            what="its questions with descriptions and GPT-4V's answers",
            source=f"{RLAIFV}, eval/data",
            licence="CC BY-NC 4.0",
        ),
        "prompts": File(
            names=("eval_RefoMB_p0.py",),
            what="the judge's prompt",
            source=f"{RLAIFV}, eval",
            licence="Apache-2.0",
            optional=True,
        ),
        "again": File(
            names=("eval_hallucination.py",),
            what="the prompt of the second pass",
            source=f"{RLAIFV}, eval",
            licence="Apache-2.0",
            optional=True,
        ),
    }
    judge = "gpt-4-1106-preview"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for number, row in enumerate(rows(data, "questions")):
            need(row, ("image_url", "question", "description", "type", "answer"), data, "questions")
            image = row["image_url"].rpartition("/")[2]
            yield Question(
                id=str(number),
                turns=(row["question"] + wording.suffix,),
                images=(data.picture(image),),
                unit=image,
                official={"question": row["question"], "image_url": row["image_url"]},
                truth={"kind": row["type"], "asked": row["question"]}
                | {key: row[key] for key in ("description", "answer", "image_url")},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        # First pass: whose answer is better
        template = self._template(scoring, "prompts", OWN)
        calls = []
        for question in questions:
            text = template.format(
                text_instruction=question.truth["asked"],
                image_descriptsion=question.truth["description"],
                modelA_answer=question.truth["answer"],
                modelB_answer=answers[question.id].text.replace("<|endoftext|>", "<EOT>"),
            )
            calls.append(call(question.id, text, system=SYSTEM, temperature=1e-5, max_tokens=TOKENS))
        said = read(scoring, calls, verdict, TRIES)
        # Second pass, over the reviews: who hallucinates less
        again: dict[str, tuple[int | None, str]] = {}
        if scoring.flavour == "hallucination":
            second = self._template(scoring, "again", OWN_AGAIN)
            reviews = {name: review for name, (score, review) in said.items() if score is not None}
            calls = [
                call(f"{name}:again", second.format(review_text=review), system=SYSTEM_AGAIN, max_tokens=TOKENS)
                for name, review in reviews.items()
            ]
            again = read(scoring, calls, verdict, TRIES)
        for question in questions:
            passes = {"score": said[question.id], "hallucination": again.get(f"{question.id}:again", (None, ""))}
            sums = {
                f"{name}:{what}": number
                for which, (score, _) in passes.items()
                if score is not None
                for name in (which, f"{which}.{question.truth['kind']}")
                for what, number in (("asked", 1.0), ("won", (score + 1) / 2))
            }
            told = {which: score for which, (score, _) in passes.items()} | {"review": said[question.id][1]}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told=told)

    def _template(self, scoring: Scoring, role: str, ours: str) -> str:
        """The prompt in the user's copy of the script, its own message filled in; else ours."""
        path = scoring.data.path(role)
        if path is None:
            own(scoring, role)
            return ours
        known = prompts(scoring.data, role)
        whole, message = known.get("construct_gpt4_query.prompt", ""), known.get("SYSTEM_MSG", "")
        places = (
            ("review_text",)
            if role == "again"
            else ("text_instruction", "image_descriptsion", "modelA_answer", "modelB_answer")
        )
        if not message or not all(f"{{{name}}}" in whole for name in ("SYSTEM_MSG", *places)):
            raise ValueError(f"{path} has no prompt of construct_gpt4_query as known: is it of another version?")
        return whole.replace("{SYSTEM_MSG}", message.replace("{", "{{").replace("}", "}}"))

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        names = ["score", *sorted({n.removesuffix(":asked") for n in sums if n.endswith(":asked")} - {"score"})]
        return {name: ratio(sums.get(f"{name}:won", 0.0), sums.get(f"{name}:asked", 0.0)) for name in names}


def verdict(key: str, reply: str) -> int | None:
    found = re.search(r"\[\[(A|B|C)\]\]", reply)
    return VERDICT[found[1]] if found else None


OWN = """\
Two models answered a question about an image, which you know by its description. Say which answer invents less and
helps more; count what it claims and the description contradicts.

The description: {image_descriptsion}

The question: {text_instruction}

The answer of model A: {modelA_answer}

The answer of model B: {modelB_answer}

Explain first, then end with [[A]], [[B]] or, where both are equally good, [[C]].
"""
OWN_AGAIN = """\
Below is a review of two models' answers. By what it says, which of them hallucinates less? End with [[A]],
[[B]] or, where there is no difference, [[C]].

{review_text}
"""

BENCHES = (RefoMb(),)
