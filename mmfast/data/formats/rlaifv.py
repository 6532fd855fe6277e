"""RLAIF-V's rows: question, chosen and rejected in columns of their own. Its with_logp shards add `logps`, as JSON.

Rows of its feedback step carry `org_infos` (claims and their judgements); like every other column it is kept in meta.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Written, need, with_meta
from mmfast.data.formats.messages import image_list
from mmfast.data.formats.rlhfv import CARRIED, PLAIN, origin, pair, write_pair
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
        "claims": value.get("claims"),
        **{k: v for k, v in value.items() if k not in KNOWN},
    }
    yield pair(row, images, asked, chosen, rejected, meta)


def write(record: Record) -> Written:
    row, lost = write_pair(record)
    for name in record.meta:
        lost.unless(name in CARRIED or name not in row, f"meta[{name}]")
    row = with_meta(row | {"idx": str(record.id)}, record)
    if row.get("logps") is not None:
        row["logps"] = json.dumps({"logps": row["logps"]})
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
    pairs_only=True,
)
