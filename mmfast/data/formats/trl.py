"""TRL's formats, which are also the canonical one: prompt/chosen/rejected as messages or texts, messages for SFT."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Written, record_of
from mmfast.data.formats.messages import answer, chat, image_list, place_images, question, split_answer, split_pair
from mmfast.data.problems import BadRow
from mmfast.data.records import Record
from mmfast.data.text.templates import text_of

KNOWN = ("id", "images", "image", "messages", "prompt", "chosen", "completion", "rejected", "chosen_prompt",
         "rejected_prompt", "weight", "segments", "weights", "scores", "meta")  # fmt: skip


def _sided(row: dict, images: int, inside: list) -> tuple[list[dict], list[dict], list[dict] | None]:
    """The prompt, chosen and rejected messages of a row, whichever of TRL's forms it has."""
    chosen = row.get("chosen", row.get("completion"))
    rejected = row.get("rejected")
    prompt = row.get("prompt")
    if row.get("messages") is not None and chosen is None:
        first, last = split_answer(place_images(chat(row["messages"], "messages", inside), images))
        return list(first), list(last), None
    if chosen is None:
        raise BadRow("format", "the row has a prompt but no chosen (or completion)")
    if prompt is None and (isinstance(chosen, str) or rejected is None):
        raise BadRow("format", "a row without prompt needs chosen and rejected as whole conversations")

    def turns(value: Any, name: str, one: Callable[[str], dict]) -> list[dict]:
        return [] if value is None else [one(value)] if isinstance(value, str) else chat(value, name, inside)

    better, worse = turns(chosen, "chosen", answer), turns(rejected, "rejected", answer)
    before = turns(prompt, "prompt", lambda text: question(text, 0))
    sides = [better, worse]
    whole = [bool(side) and side[0]["role"] != "assistant" for side in sides]
    if before and any(whole):  # the sides tell the prompt again
        if not all(w for w, side in zip(whole, sides, strict=True) if side):
            raise BadRow("format", "one of chosen and rejected begins with the prompt, the other does not")
        asked = text_of(before[-1]).strip()
        if not all(asked in (text_of(m).strip() for m in side[:-1]) for side in sides if side):
            raise BadRow("format", "chosen or rejected begins with another question than the prompt")
    if any(whole):
        before, better, worse = split_pair(better, worse) if worse else (better[:-1], better[-1:], worse)
    elif isinstance(prompt, str):
        before = [question(prompt, images)]
    return place_images(before, images), better, None if rejected is None else worse


def _segments(value: Any) -> dict[str, list] | None:
    """Checks {"chosen": [[start, end(, weight)], ...], "rejected": ...}, which count characters of the last answer."""
    if value is None:
        return None
    if not isinstance(value, dict) or not set(value) <= {"chosen", "rejected"}:
        raise BadRow("format", "segments is not {chosen: [[start, end, weight], ...], rejected: ...}")
    for spans in value.values():
        for span in spans or ():
            bad = len(span) not in (2, 3) or any(isinstance(x, bool | str) for x in span)
            if bad or not 0 <= span[0] < span[1] or (len(span) == 3 and span[2] is not None and span[2] < 0):
                raise BadRow("format", f"a segment is [start, end] or [start, end, weight >= 0], not {span}")
    return {k: [tuple(s) for s in v] for k, v in value.items() if v}


def _decoded(value: Any) -> Any:
    """The value of a column, which Parquet holds as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    images = image_list(value.get("images", value.get("image")))
    inside: list[Any] = []
    prompt, chosen, rejected = _sided(value, len(images), inside)
    own: dict[str, Any] = {}
    for name in ("chosen_prompt", "rejected_prompt"):
        if (side := value.get(name)) is not None:
            messages = [question(side, len(images))] if isinstance(side, str) else chat(side, name, inside)
            own[name] = tuple(place_images(messages, len(images)))
    if inside and images:
        raise BadRow("format", "images stand in a column and in content parts; one of the two places is enough")
    segments, weights = _decoded(value.get("segments")), _decoded(value.get("weights"))
    if segments and weights:
        raise BadRow("format", "the row has both segments and weights; they name the same thing")
    weight = value.get("weight")
    yield record_of(
        row,
        KNOWN,
        images=images or tuple(inside),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        weight=1.0 if weight is None else float(weight),
        segments=_segments(segments or weights),
        scores=_decoded(value.get("scores")) or None,
        meta=_decoded(value.get("meta")),
        **own,
    )


def write(record: Record) -> Written:
    """The canonical form: everything a record has."""
    row: dict[str, Any] = {"id": record.id, "images": list(record.images)}
    for name in ("prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt"):
        if (messages := getattr(record, name)) is not None:
            row[name] = list(messages)
    if record.weight != 1.0:
        row["weight"] = record.weight
    return row | {name: value for name in ("segments", "scores", "meta") if (value := getattr(record, name))}, []


def _accepts(row: dict) -> bool:
    def texts(value: Any) -> bool:
        return isinstance(value, str) or _is_messages(value)

    if _is_messages(row.get("messages")) and not (
        _is_messages(row.get("chosen")) and _is_messages(row.get("rejected"))
    ):
        return not any(k.startswith("rejected") for k in row)
    if "question" in row:
        return False
    chosen = row.get("chosen", row.get("completion"))
    return texts(chosen) and ("prompt" in row or "chosen_prompt" in row or _is_messages(chosen))


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


FORMAT = Format(
    name="trl",
    columns=frozenset(KNOWN),
    looks_for="prompt + chosen (+ rejected) as texts or role/content messages, or messages",
    accepts=_accepts,
    read=read,
    write=write,
)
