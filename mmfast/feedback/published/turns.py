"""Data sets that have questions of their own: LLaVA-Instruct, LRV-Instruction, SciGraphQA, and any file of rows that
mmfast reads (RLAIF-V's and RLHF-V's own, SIMA's prompts).

A question is asked without the turns before it. LLaVA-Instruct's later turns may lean on these ("What colour is it?"),
those of its mix that came from VQA do not: so the first one is taken, or all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.known import FORMATS
from mmfast.data.formats.messages import ROLES, image_list
from mmfast.data.problems import BadRow, pass_over
from mmfast.engines.asked import QUESTIONS, read_asked
from mmfast.feedback.published.base import VISUAL_GENOME, Found, Kind, Taking, text_in

MARKER = "<image>"
OTHERS = {"chosen", "image", "images", "image_path"}  # columns of rows that have an image_id too, and are not LRV's
Pair = tuple[str, str]  # a question, and its answer ("": none)


def _spoken(turns: Any) -> list[Pair]:
    """The questions of a conversation of {from, value}, each with the answer that follows it."""
    if not isinstance(turns, list) or not turns:
        raise BadRow("format", "the conversation is not a list of turns")
    out: list[Pair] = []
    for turn in turns:
        role = ROLES.get(turn.get("from", "")) if isinstance(turn, dict) else None
        if role is None:
            raise BadRow("format", f"a turn is not {{from, value}} with a role of {', '.join(ROLES)}: {str(turn)[:80]}")
        if role == "user":
            out.append((text_in(turn.get("value"), "question"), ""))
        elif role == "assistant":
            if not out or out[-1][1]:
                raise BadRow("format", "an answer of the conversation follows no question")
            out[-1] = (out[-1][0], text_in(turn.get("value"), "answer"))
    if not out:
        raise BadRow("format", "the conversation asks nothing")
    return out


def _wanted(pairs: list[Pair], taking: Taking) -> list[Pair]:
    taking.left["later questions of a conversation (--turns all takes them)"] += (
        len(pairs) - 1 if taking.turns == "first" else 0
    )
    return pairs[:1] if taking.turns == "first" else pairs


def _llava(source: Path, rows: Iterator[Row], taking: Taking) -> Iterator[Found]:
    def make(row: Row) -> Iterator[Found]:
        pairs = _spoken(row.value.get("conversations"))
        images = taking.named(image_list(row.value.get("image", row.value.get("images"))))
        if not images:
            taking.left["rows without an image"] += 1
            return
        marks = sum(question.count(MARKER) for question, _ in pairs)
        if marks > len(images) or (len(images) > 1 and marks != len(images)):
            raise BadRow(
                "image-count", f"the conversation has {marks} times {MARKER}, and the row {len(images)} images"
            )
        for question, answer in _wanted(pairs, taking):
            if len(images) == 1:  # it stands before the question, as LLaVA puts it
                question = text_in(question.replace(MARKER, ""), "question")
            yield Found(images=images, asked=question, answer=answer)

    return taking.each(rows, make)


def _lrv(source: Path, rows: Iterator[Row], taking: Taking) -> Iterator[Found]:
    """Its images are Visual Genome's, by their numbers; those of charts are named whole."""

    def make(row: Row) -> Iterator[Found]:
        value = row.value
        name = value.get("image_id")
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name):
            raise BadRow("format", f"image_id is no name of an image: {str(name)[:80]}")
        file = str(name) if Path(str(name)).suffix else f"{name}.jpg"
        answer = text_in(value["answer"], "answer") if value.get("answer") is not None else ""
        yield Found(
            images=(file,),
            places=tuple(place.format(file) for place in VISUAL_GENOME),
            asked=text_in(value.get("question"), "question"),
            answer=answer,
            more={"task": value["task"]} if value.get("task") else {},
        )

    return taking.each(rows, make)


def _scigraphqa(source: Path, rows: Iterator[Row], taking: Taking) -> Iterator[Found]:
    """The questions alone: title, abstract and caption are not shown, as in mllm-dpo's final run."""

    def make(row: Row) -> Iterator[Found]:
        value = row.value
        if value.get("q_a_pairs"):
            if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value["q_a_pairs"]):
                raise BadRow("format", "q_a_pairs is no list of [question, answer]")
            pairs = [(text_in(q, "question"), text_in(a, "answer")) for q, a in value["q_a_pairs"]]
        else:
            pairs = _spoken(value.get("conversations"))
        image = text_in(value.get("image_file"), "image_file")
        for question, answer in _wanted(pairs, taking):
            yield Found(images=(image,), asked=text_in(question.replace(MARKER, ""), "question"), answer=answer)

    return taking.each(rows, make)


def _rows(source: Path, rows: Iterator[Row], taking: Taking) -> Iterator[Found]:
    """Any file that `mmfast generate` reads, asked as it asks it. `rows` are read again there."""
    for asked in islice(read_asked(source, root=taking.root), *taking.rows):
        try:
            if asked.problem:
                raise BadRow("format", asked.problem)
            images = taking.named(asked.images)
        except BadRow as error:
            pass_over(asked.source, error, taking.problems)
            continue
        if images:
            truth = asked.meta.get("reference") or asked.meta.get("ground_truth") or ""
            yield Found(images=images, asked=list(asked.messages), answer=str(truth).strip())
        else:
            taking.left["rows without an image"] += 1


def _conversation(value: dict[str, Any]) -> bool:
    turns = value.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and {"from", "value"} <= set(first)


def _a_row(value: dict[str, Any]) -> bool:
    return any(fmt.accepts(value) for fmt in FORMATS.values()) or any(value.get(name) for name in QUESTIONS)


KINDS = (
    Kind(
        name="scigraphqa",
        looks_for="image_file with q_a_pairs or conversations",
        accepts=lambda value: "image_file" in value and ("q_a_pairs" in value or _conversation(value)),
        read=_scigraphqa,
        asks=True,
        turns=True,
    ),
    Kind(
        name="llava",
        looks_for="conversations of {from, value} without a rejected side",
        accepts=lambda value: (
            _conversation(value) and not any(name.startswith(("rejected", "chosen", "image_file")) for name in value)
        ),
        read=_llava,
        asks=True,
        turns=True,
    ),
    Kind(
        name="lrv",
        looks_for="image_id and question",
        accepts=lambda value: {"image_id", "question"} <= set(value) and not OTHERS & set(value),
        read=_lrv,
        asks=True,
    ),
)
ROWS = Kind(
    name="rows", looks_for="rows of any format that mmfast generate reads", accepts=_a_row, read=_rows, asks=True
)
