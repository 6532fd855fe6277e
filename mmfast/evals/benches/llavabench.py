"""LLaVA-Bench: a judge who knows captions (and boxes) of the image gives two scores, to GPT-4's answer and the model's;
the figure is 100 times the ratio of their means, each mean rounded to three digits first.

Two numbers are read from the reply's first line, where commas count as blanks: exactly two parts, or the parse failed
("9, 6" has three). LLaVA counts a failure as -1 and -1 in both means; the flavour `rlhf-v` leaves it out, and bounds
replies at 180 tokens. `strict` takes the first two numbers of the first line and leaves out what has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmfast.engines.base import Decode
from mmfast.evals.asking import call, own, replies
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import need, rows, value

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
TOKENS = {"llava": 1024, "rlhf-v": 180}
LLAVA = "github.com/haotian-liu/LLaVA, llava/eval/table/rule.json"


def _files(what: str, source: str, questions: str, context: str, reference: str) -> dict[str, File]:
    licence = "Apache-2.0, answers of GPT-4 under OpenAI's terms"
    return {
        "questions": File(names=(questions,), what=f"the questions of {what}", source=source, licence=licence),
        "context": File(names=(context,), what="what the judge knows of the images", source=source, licence=licence),
        "reference": File(names=(reference,), what="GPT-4's answers", source=source, licence=licence),
        "rule": File(
            names=("rule.json", "rule_llava.json"),
            what="the judge's prompts",
            source=LLAVA,
            licence="Apache-2.0",
            optional=True,
        ),
    }


class LlavaBenchCoco(Benchmark):
    name = "llava-bench-coco"
    about = "90 questions about 30 images of COCO: conversation, detail, complex reasoning"
    flavours: ClassVar = ("llava", "rlhf-v")
    wordings: ClassVar = {
        "llava": Wording(decode=Decode(max_tokens=1024), about="LLaVA's evaluation: greedy"),
        "rlhf-v": Wording(decode=Decode(max_tokens=1024, beams=3), about="RLHF-V: three beams"),
    }
    files: ClassVar = _files(
        "LLaVA-Bench (COCO)",
        "github.com/haotian-liu/LLaVA (playground/data/coco2014_val_qa_eval, llava/eval/table)",
        "qa90_questions.jsonl",
        "caps_boxes_coco2014_val_80.jsonl",
        "qa90_gpt4_answer.jsonl",
    )
    judge = "gpt-4-0314"
    parsers_differ = True
    prefix: ClassVar = ""  # of a category's name in the file of rules

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        context, reference = {}, {}
        for row in rows(data, "context"):
            name = "captions" if "captions" in row else "caption"
            kind = "" if isinstance(row.get(name), str) else ":texts"
            need(row, ("image", name + kind, *(("instances:list",) if "instances" in row else ())), data, "context")
            for box in row.get("instances", ()):
                need(box, ("category", "bbox:list"), data, "context")
            context[row["image"]] = row
        for row in rows(data, "reference"):
            need(row, ("question_id:id", "text"), data, "reference")
            reference[str(row["question_id"])] = row["text"]
        for row in rows(data, "questions"):
            need(row, ("question_id:id", "image", "text", "category"), data, "questions")
            name = str(row["question_id"])
            if row["image"] not in context or name not in reference:
                lacking = "context" if row["image"] not in context else "reference"
                raise ValueError(f"{data.path(lacking)} has nothing for question {name} ({row['image']})")
            yield Question(
                id=name,
                turns=(row["text"] + wording.suffix,),
                images=(data.picture(row["image"]),),
                unit=row["image"],
                truth={
                    "category": self.prefix + row["category"],
                    "asked": row["text"],
                    "context": known(context[row["image"]]),
                    "reference": reference[name],
                },
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        rules: Mapping[str, Mapping[str, str]] = {}
        if scoring.data.path("rule"):
            rules = value(scoring.data, "rule")
        else:
            own(scoring, "rule")
        calls = []
        for question in questions:
            truth = question.truth
            if rules and truth["category"] not in rules:
                raise ValueError(f"{scoring.data.path('rule')} has no prompt for {truth['category']}")
            rule = rules.get(truth["category"], {"role": "Assistant", "prompt": OWN})
            text = asked(truth, answers[question.id].text, rule["role"], rule["prompt"])
            calls.append(call(question.id, text, system=SYSTEM, temperature=0.2, max_tokens=TOKENS[scoring.flavour]))
        said = replies(scoring, calls)
        for question in questions:
            reply = said.get(question.id)
            sums: dict[str, float] = {}
            scores = None if reply is None else (strictly if scoring.strict else officially)(reply)
            scoring.counts["unparsed"] += reply is not None and scores is None
            counts = reply is not None and scoring.flavour == "llava" and not scoring.strict
            if scores is not None or counts:
                first, second = scores or (-1.0, -1.0)
                for name in ("all", question.truth["category"]):
                    sums |= {f"{name}:asked": 1.0, f"{name}:reference": first, f"{name}:model": second}
            yield Mark(id=question.id, unit=question.unit, sums=sums, told={"scores": scores, "reply": reply})

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        out = {}
        for name in sorted(name.removesuffix(":asked") for name in sums if name.endswith(":asked")):
            asked = sums[f"{name}:asked"]
            means = [_rounded(ratio(sums[f"{name}:{who}"], asked)) for who in ("reference", "model")]
            out[name] = ratio(means[1], means[0]) * 100
            out |= {f"{name}.reference": means[0] * 10, f"{name}.model": means[1] * 10}
        return out


class LlavaBenchWild(LlavaBenchCoco):
    name = "llava-bench-wild"
    about = "60 questions about 24 images in the wild"
    files: ClassVar = _files(
        "LLaVA-Bench (In-the-Wild)",
        "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
        "questions.jsonl",
        "context.jsonl",
        "answers_gpt4.jsonl",
    )
    published = "LLaVA-1.5 7B 65.4, 13B 72.5 (LLaVA docs/MODEL_ZOO.md; means of three reviews, which give these here)"
    prefix: ClassVar = "llava_bench_"


def _rounded(mean: Any) -> Any:
    return np.round(mean, 3) if isinstance(mean, np.ndarray) else round(mean, 3)


def known(row: Mapping[str, Any]) -> str:
    """What the judge is told of an image: a caption or several, and boxes where there are any."""
    captions = row["captions"] if "captions" in row else row["caption"]
    text = captions if isinstance(captions, str) else "\n".join(captions)
    if "instances" in row:
        text += "\n\n" + "\n".join(f"{box['category']}: {box['bbox']}" for box in row["instances"])
    return text


def asked(truth: Mapping[str, Any], answer: str, role: str, prompt: str) -> str:
    parts = {"Context": truth["context"], "Question": truth["asked"]}
    text = "".join(f"[{name}]\n{told}\n\n" for name, told in parts.items())
    for number, told in enumerate((truth["reference"], answer), 1):
        text += f"[{role} {number}]\n{told}\n\n[End of {role} {number}]\n\n"
    return text + f"[System]\n{prompt}\n\n"


def officially(reply: str) -> tuple[float, float] | None:
    parts = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        scores = (float(parts[0]), float(parts[1])) if len(parts) == 2 else None
    except ValueError:
        return None
    return scores if scores and all(map(math.isfinite, scores)) else None  # "nan" would make every mean one


def strictly(reply: str) -> tuple[float, float] | None:
    """The first two numbers of the first line that has any, from 1 to 10."""
    line = next((line for line in reply.splitlines() if re.search(r"\d", line)), "")
    plain = re.sub(r"assistant\s*\d|/\s*10\b", "", line, flags=re.IGNORECASE)
    found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", plain, re.ASCII)]
    return (found[0], found[1]) if len(found) == 2 and all(1 <= number <= 10 for number in found) else None


OWN = (
    "Rate how helpful, relevant, accurate and detailed each of the two answers is, from 1 to 10. Write both scores on "
    "the first line, a blank between them and nothing else; explain them below."
)

BENCHES = (LlavaBenchCoco(), LlavaBenchWild())
