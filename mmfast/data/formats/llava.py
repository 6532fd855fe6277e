"""LLaVA's SFT files: {"id", "image": path | [paths] | absent, "conversations": [{"from", "value"}, ...]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, record_of, with_meta
from mmfast.data.formats.messages import from_value, image_list, split_answer, to_value
from mmfast.data.records import Record

KNOWN = ("id", "image", "images", "conversations")


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    prompt, chosen = split_answer(from_value(row.value.get("conversations")))
    images = image_list(row.value.get("image", row.value.get("images")))
    yield record_of(row, KNOWN, images=images, prompt=prompt, chosen=chosen)


def write(record: Record) -> Written:
    lost = Uncarried(record, "rejected", "scores")
    lost.unless(record.chosen_prompt is None or record.chosen_prompt == record.prompt, "chosen_prompt")
    row: dict[str, Any] = {"id": record.id}
    if record.images:
        row["image"] = record.images[0] if len(record.images) == 1 else list(record.images)
    row["conversations"] = to_value([*record.prompt, *record.chosen])
    return with_meta(row, record), lost.names


FORMAT = Format(
    name="llava",
    columns=frozenset(KNOWN),
    looks_for="conversations of {from, value} turns, without a rejected side",
    accepts=lambda row: (
        isinstance(row.get("conversations"), list) and not any(k.startswith(("rejected", "chosen")) for k in row)
    ),
    read=read,
    write=write,
)
