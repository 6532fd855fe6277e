"""RLHF-V's rows: question, chosen and rejected as JSON in the column `text`; image bytes, or base64 in the legacy TSV.

A TSV's text is base64 of a JSON list [question, chosen, rejected(, log-prob six-tuple)]. Muffin's with_logp Parquet
keeps the six-tuple in the JSON, under `logps`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.packed import kind_of
from mmfast.data.containers.read import Row
from mmfast.data.containers.tables import TSV_COLUMNS
from mmfast.data.formats.base import Format, Uncarried, Written, need, record_of
from mmfast.data.formats.messages import answer, from_value, image_list, question, to_markers, to_value
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

PLAIN = ("ds_name", "origin_dataset", "image_path")
CARRIED = (*PLAIN, "origin_split", "logps")  # of a record's meta


def side_text(messages: Any) -> Any:
    return messages[0]["content"] if len(messages) == 1 else to_value(messages)


def origin(value: Any) -> Any:
    """origin_split is JSON text; anything else is kept as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def pair(row: Row, images: tuple, asked: str, chosen: Any, rejected: Any, meta: dict[str, Any]) -> Record:
    """A side is a text, or a whole conversation as a list of turns."""
    sides = [[answer(s)] if isinstance(s, str) else from_value(s) for s in (chosen, rejected)]
    kept = {k: v for k, v in meta.items() if v is not None}
    prompt = [question(asked, len(images))]
    return record_of(
        row, row.value, ids=("id", "idx"), images=images, prompt=prompt, chosen=sides[0], rejected=sides[1], meta=kept
    )


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    (text,) = need(value, "text")
    meta = {name: value.get(name) for name in PLAIN}
    legacy = set(TSV_COLUMNS) == set(value) and kind_of(row.file) == ".tsv" and text[:1] != "{"
    if legacy:
        parts = json.loads(base64.b64decode(text, validate=True))
        if not isinstance(parts, list) or len(parts) not in (3, 4):
            raise BadRow("format", "the TSV's text is not a list [question, chosen, rejected(, log-probs)]")
        content = dict(zip(("question", "chosen", "rejected", "logps"), parts, strict=False))
        images: tuple = ("base64:" + value["image"],) if value["image"] else ()
        meta["origin_split"] = json.loads(base64.b64decode(value["origin_split"], validate=True))
    else:
        content = json.loads(text) if isinstance(text, str) else text
        image = value.get("image")  # its preview in JSON lines has the path alone
        images = image_list(value.get("image_path") if image is None else image)
        meta["origin_split"] = origin(value.get("origin_split"))
    need(content, "question", "chosen", "rejected")
    meta["logps"] = content.get("logps")
    meta |= {k: v for k, v in value.items() if k not in (*TSV_COLUMNS, "id")}
    yield pair(row, images, content["question"], content["chosen"], content["rejected"], meta)


def write_pair(record: Record) -> tuple[dict[str, Any], Uncarried]:
    """What RLHF-V's and RLAIF-V's rows have in common: one image, one question, two answers."""
    lost = Uncarried(record, "chosen_prompt and rejected_prompt", "images after the first", "scores")
    lost.unless(len(record.prompt) == 1, "turns before the last question")
    image = record.images[0] if record.images else None
    if isinstance(image, bytes):
        image = {"bytes": image, "path": record.meta.get("image_path")}
    split = record.meta.get("origin_split")
    return {
        **{name: record.meta.get(name) for name in PLAIN},
        "image": image,
        "question": to_markers(record.prompt[-1]).replace("<image>\n", "") if record.prompt else "",
        "chosen": side_text(record.chosen),
        "rejected": side_text(record.rejected),
        "origin_split": split if isinstance(split, str | None) else json.dumps(split),
        "idx": int(record.id) if record.id.isdecimal() else record.id,
    }, lost


def write(record: Record) -> Written:
    row, lost = write_pair(record)
    for name in record.meta:
        lost.unless(name in CARRIED, f"meta[{name}]")
    content = {name: row.pop(name) for name in ("question", "chosen", "rejected")}
    if record.meta.get("logps") is not None:
        content["logps"] = record.meta["logps"]
    return {**row, "text": json.dumps(content, ensure_ascii=False)}, lost.names


def _accepts(row: dict) -> bool:
    text = row.get("text")
    if not isinstance(text, str | dict) or not {"image", "image_path"} & set(row):
        return False
    if set(row) == set(TSV_COLUMNS) and isinstance(text, str) and not text.lstrip().startswith("{"):
        return True
    try:
        content = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return False
    return isinstance(content, dict) and {"question", "chosen", "rejected"} <= set(content)


FORMAT = Format(
    name="rlhfv",
    columns=frozenset((*TSV_COLUMNS, "id")),
    looks_for="image + text, the text a JSON of question, chosen and rejected (or the seven columns of its TSV)",
    accepts=_accepts,
    read=read,
    write=write,
    pairs_only=True,
)
