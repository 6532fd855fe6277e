"""Rows into files: a writer a container, each by the name's suffix. A format has already made its own rows."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmfast.data.containers.tables import TSV_COLUMNS

JSON_COLUMNS = ("segments", "scores", "meta")  # ragged: Parquet holds them as JSON text


def json_text(value: Any) -> str:
    """JSON of what tables hold: bytes as base64, arrays and sets as lists, dates and decimals as their text."""

    def plain(item: Any) -> Any:
        if isinstance(item, bytes):
            return "base64:" + base64.b64encode(item).decode()
        if isinstance(item, set | frozenset):
            return sorted(item)
        return item.tolist() if hasattr(item, "tolist") else str(item)  # numpy, torch

    return json.dumps(value, ensure_ascii=False, default=plain)


def _jsonl(path: Path, rows: Iterator[dict]) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json_text(row) + "\n" for row in rows)


def _json(path: Path, rows: Iterator[dict]) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write("[")
        for i, row in enumerate(rows):
            f.write((",\n" if i else "\n") + json_text(row))
        f.write("\n]\n")


def _canonical_schema() -> Any:
    import pyarrow as pa

    part = pa.struct([("type", pa.string()), ("text", pa.string()), ("index", pa.int64())])
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
    images = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    sides = ("prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt")
    return pa.schema(
        [
            ("id", pa.string()),
            ("images", images),
            *((side, messages) for side in sides),
            ("weight", pa.float64()),
            *((name, pa.string()) for name in JSON_COLUMNS),
        ]
    )


def _parquet(path: Path, rows: Iterator[dict], batch: int = 1024) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    pending: list[dict] = []

    def flush() -> None:
        nonlocal writer
        if writer is None:
            canonical = _canonical_schema()
            names = {name: None for row in pending for name in row}
            if set(names) <= set(canonical.names) and "prompt" in names:
                schema = canonical
            else:
                schema = pa.Table.from_pylist([{**names, **row} for row in pending]).schema
            writer = pq.ParquetWriter(path, schema)
        unknown = {name for row in pending for name in row} - set(writer.schema.names)
        if unknown:
            raise ValueError(f"column {min(unknown)} appears only after {batch} rows; write .jsonl instead")
        writer.write_table(pa.Table.from_pylist(pending, writer.schema))
        pending.clear()

    # The first batch decides the schema; the file closes only when it is whole
    for row in rows:
        pending.append(_columns(row))
        if len(pending) == batch:
            flush()
    if pending or writer is None:
        flush()
    assert writer is not None
    writer.close()


def _columns(row: dict) -> dict:
    """A row with one type a column: contents as parts, ragged values as JSON text, images as {bytes, path}."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        nested = isinstance(value, dict) and name not in ("image", "question", "chosen", "rejected")
        if (name in JSON_COLUMNS and value is not None) or nested:
            value = json_text(value)
        elif name in ("prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt") and isinstance(value, list):
            value = [_parts(m) for m in value]
        elif name in ("images", "rejected_images"):
            value = [_image(v) for v in value]
        elif name == "image" and value is not None:
            value = _image(value)
        out[name] = value
    return out


def _parts(message: dict) -> dict:
    if "content" not in message:
        return message
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    full = [{"type": p["type"], "text": p.get("text"), "index": p.get("index")} for p in parts]
    return {"role": message["role"], "content": full}


def _image(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return {"bytes": value, "path": None} if isinstance(value, bytes) else {"bytes": None, "path": value}


def _tsv(path: Path, rows: Iterator[dict]) -> None:
    def text64(value: Any) -> str:
        return base64.b64encode(json.dumps(value, ensure_ascii=False).encode()).decode()

    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            content = json.loads(row["text"])
            parts = [content[k] for k in ("question", "chosen", "rejected", "logps") if content.get(k) is not None]
            image = row["image"]
            data = image.get("bytes") if isinstance(image, dict) else None
            if image is not None and data is None:
                raise ValueError("the TSV embeds images; give rows whose images are bytes (convert to .parquet first)")
            cells = {
                **{k: "" if row.get(k) is None else str(row[k]) for k in TSV_COLUMNS},
                "image": base64.b64encode(data or b"").decode(),
                "text": text64(parts),
                "origin_split": text64(json.loads(row["origin_split"]) if row.get("origin_split") else None),
            }
            f.write("\t".join(cells[k].replace("\t", " ") for k in TSV_COLUMNS) + "\n")


def _pickle(path: Path, rows: Iterator[dict]) -> None:
    table: dict[str, dict] = {}
    for row in rows:
        known = table.setdefault(row["key"], row["value"])
        if known is not row["value"]:
            known["sample_pair"] += row["value"]["sample_pair"]
    with open(path, "wb") as f:
        pickle.dump(table, f, protocol=4)


WRITERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".tsv": _tsv, ".pkl": _pickle}
