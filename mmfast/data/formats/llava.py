"""LLaVA's SFT files: {"id", "image": path | [paths] | absent, "conversations": [{"from", "value"}, ...]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Losses, from_value, image_list, record_id, split_answer, to_value
from mmfast.data.records import Record

KNOWN = ("id", "image", "images", "conversations")


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    prompt, chosen = split_answer(from_value(value.get("conversations")))
    yield Record(
        id=record_id(row, "id"),
        source=row.source,
        images=image_list(value.get("image", value.get("images"))),
        prompt=prompt,
        chosen=chosen,
        meta={k: v for k, v in value.items() if k not in KNOWN},
    )


def write(record: Record) -> tuple[dict, list[str]]:
    lost = Losses()
    lost.unless(record.rejected is None, "rejected")
    lost.unless(record.chosen_prompt is None or record.chosen_prompt == record.prompt, "chosen_prompt")
    lost.unless(record.weight == 1.0, "weight")
    lost.unless(not record.segments, "segments")
    lost.unless(not record.scores, "scores")
    row: dict[str, Any] = {"id": record.id}
    if record.images:
        row["image"] = record.images[0] if len(record.images) == 1 else list(record.images)
    row["conversations"] = to_value([*record.prompt, *record.chosen])
    return {**row, **{k: v for k, v in record.meta.items() if k not in row}}, lost.names


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
