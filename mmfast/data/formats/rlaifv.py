"""RLAIF-V's rows: question, chosen and rejected in columns of their own. Its with_logp shards add `logps`, as JSON.

Rows of its feedback step carry `org_infos` (claims and their judgements); like every other column it is kept in meta.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import ONE_SIDED, Format, image_list, need
from mmfast.data.formats.rlhfv import PLAIN, origin, pair, write_side
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

KNOWN = (*PLAIN, "id", "idx", "image", "question", "chosen", "rejected", "origin_split", "logps", "claims")


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    asked, chosen, rejected = need(value, "question", "chosen", "rejected")
    if not isinstance(asked, str):
        raise BadRow("format", f"the question is a {type(asked).__name__}, not a text")
    image = value.get("image")
    images = image_list(value.get("image_path") if image is None else image)
    logps = value.get("logps")
    logps = json.loads(logps) if isinstance(logps, str) and logps else logps
    meta = {
        **{name: value.get(name) for name in PLAIN},
        "origin_split": origin(value.get("origin_split")),
        "logps": logps["logps"] if isinstance(logps, dict) else logps or None,
        **{k: v for k, v in value.items() if k not in KNOWN},
    }
    record = pair(row, images, asked, chosen, rejected, meta)
    if value.get("claims") is not None:
        record = replace(record, meta={**record.meta, "claims": value["claims"]})
    yield record


def write(record: Record) -> tuple[dict | None, list[str]]:
    if record.rejected is None:
        return None, [ONE_SIDED]
    row, lost = write_side(record)
    row["idx"] = str(record.id)
    if record.meta.get("logps") is not None:
        row["logps"] = json.dumps({"logps": record.meta["logps"]})
    for name, value in record.meta.items():
        if name not in row and name != "logps":
            row[name] = value
            lost.names.remove(f"meta[{name}]")
    return row, lost.names


FORMAT = Format(
    name="rlaifv",
    columns=frozenset(KNOWN),
    looks_for="question, chosen and rejected as columns of text, with image or image_path",
    accepts=lambda row: (
        isinstance(row.get("question"), str)
        and isinstance(row.get("chosen"), str)
        and isinstance(row.get("rejected"), str)
        and not row["chosen"].lstrip().startswith("{'from'")
    ),
    read=read,
    write=write,
)
