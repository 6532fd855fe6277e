"""mllm-dpo's files: questions and answers of LLaVA's model_vqa, and the judge's table. All are read as plain tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from mmfast.data.formats.mllm_dpo import METRICS
from mmfast.data.problems import BadRow
from mmfast.feedback.answer import grouped
from mmfast.feedback.candidates import score_named
from mmfast.feedback.seeds.leaving import Leaf, Leaving


def write_questions(leaving: Leaving) -> Iterator[dict[str, Any]]:
    for number, group in enumerate(grouped(leaving.answers)):
        first = group[0]
        row = {"question_id": first.meta.get("question_id", number), "image": leaving.image(first)}
        yield row | {"text": leaving.question(first)}


def write_answers(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """Questions of one number are of one group, as in the file of questions."""
    for number, group in enumerate(grouped(leaving.answers)):
        for one in group:
            yield {
                "question_id": group[0].meta.get("question_id", number),
                "prompt": leaving.question(one),
                "text": one.text,
                "answer_id": one.meta.get("answer_id") or hashlib.sha256(one.key.encode()).hexdigest()[:22],
                "model_id": one.meta.get("model_id", ""),
                "metadata": {},
            }


def write_judged(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """The columns that its notebooks read, in both of its spellings. An answer without all five numbers has no row."""
    for number, group in enumerate(grouped(leaving.answers)):
        for n, one in enumerate(group):
            try:
                numbers = {name: f"{score_named(name, one.scores):g}" for name in METRICS}
            except BadRow:
                leaving.lost["answers without all five numbers"] += 1
                continue
            leaving.lost["claims"] += bool(one.claims)
            asked = leaving.question(one)
            yield {
                "Key": number,
                "Candidate": one.meta.get("Candidate") or f"Candidate {n + 1}",
                **numbers,
                "cur_candidate_answer": one.text,
                "Output": one.text,
                "question_id": group[0].meta.get("question_id", number),
                "prompt": asked,
                "question": asked,
                "answer_id": one.meta.get("answer_id", ""),
                "model_id": one.meta.get("model_id", ""),
                "gpt4v_response": one.reference,
                "image": leaving.image(one),
            }


WRITES = {
    "questions": Leaf(suffixes=(".jsonl",), about="what was asked, a row a group", write=write_questions),
    "answers": Leaf(suffixes=(".jsonl",), about="answers, to go with the questions", write=write_answers),
    "judged": Leaf(suffixes=(".csv", ".jsonl"), about="the judge's table, for the notebooks", write=write_judged),
}
