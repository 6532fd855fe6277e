"""Alpaca's rows: instruction, input and output; of LLaMA-Factory also with chosen and rejected, history and images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, record_of, with_meta
from mmfast.data.formats.messages import answer, as_history, asked, image_list, to_markers
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

SIDES = {"chosen": "rejected", "chosen_response": "rejected_response"}  # LLaMA-Factory's; Argilla's UltraFeedback
KNOWN = ("id", "instruction", "input", "output", "history", "images", "image", *SIDES, *SIDES.values())


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    images = image_list(value.get("images", value.get("image")))
    preferred = next((value[name] for name in SIDES if value.get(name) is not None), None)
    better = value.get("output") if preferred is None else preferred
    worse = next((value[name] for name in SIDES.values() if value.get(name) is not None), None)
    if isinstance(better, list) and len(better) == 2 and worse is None:  # LLaMA-Factory's older form of a pair
        better, worse = better
    elif preferred is not None and value.get("output"):
        raise BadRow("format", "the row has an output and a chosen answer: which of them is the good one?")
    given = [text for text in (value.get("instruction"), value.get("input")) if text]
    if not given or not all(isinstance(text, str) for text in given):
        raise BadRow("format", "instruction and input are no texts, or both empty")
    prompt = asked("\n".join(given), value.get("history"), len(images))
    rejected = None if worse is None else [answer(worse)]
    yield record_of(row, KNOWN, images=images, prompt=prompt, chosen=[answer(better)], rejected=rejected)


def write(record: Record) -> Written:
    lost = Uncarried(record, "scores", "chosen_prompt and rejected_prompt")
    told = as_history(record.prompt)
    sides = [side for side in (record.chosen, record.rejected) if side is not None]
    if told is None or any(len(side) != 1 for side in sides):
        return None, ["the whole record: its turns are no history of questions and answers"]
    system, history, question = told
    row: dict[str, Any] = {"id": record.id, "instruction": question}
    answers = [to_markers(side[0]) for side in sides]
    row |= {"output": answers[0]} if len(answers) == 1 else {"chosen": answers[0], "rejected": answers[1]}
    row |= {"system": system} if system else {}
    row |= {"history": history} if history else {}
    row |= {"images": list(record.images)} if record.images else {}
    return with_meta(row, record), lost.names


def _accepts(row: dict) -> bool:
    if not isinstance(row.get("instruction"), str):
        return False
    better = next((name for name in SIDES if isinstance(row.get(name), str)), None)
    return row.get("output") is not None or (better is not None and isinstance(row.get(SIDES[better]), str))


FORMAT = Format(
    name="alpaca",
    columns=frozenset(KNOWN),
    looks_for="instruction (+ input) + output, or + chosen and rejected as texts",
    accepts=_accepts,
    read=read,
    write=write,
)
