"""One format into another, by way of records, with a list of what could not be carried."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import TSV_COLUMNS, data_files, iterate
from mmfast.data.formats.known import FORMATS, format_of, known_options, read_row, unused
from mmfast.data.images.index import image_bytes
from mmfast.data.problems import BadRow, Problem, unused_line
from mmfast.data.records import Record
from mmfast.files import whole

SUFFIXES = (".jsonl", ".json", ".parquet", ".tsv", ".pkl")
JSON_COLUMNS = ("segments", "scores", "meta")  # ragged: Parquet holds them as JSON text
SIGNATURES = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"GIF8", ".gif"), (b"RIFF", ".webp"), (b"BM", ".bmp"))


@dataclass(slots=True)
class Conversion:
    records: int = 0
    lost: Counter = field(default_factory=Counter)  # field -> records whose value was not carried
    problems: list[Problem] = field(default_factory=list)
    unused: Counter = field(default_factory=Counter)  # columns that the source's format gives no meaning -> rows

    def lines(self) -> list[str]:
        out = [f"{self.records} records"]
        if self.unused:
            out.append(unused_line(self.unused))
        out += [f"not carried: {name} (of {n} records)" for name, n in self.lost.most_common()]
        if self.problems:
            kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(p.kind for p in self.problems).most_common())
            out.append(f"left out: {len(self.problems)} rows ({kinds})")
        return out + [f"left out: {p}" for p in self.problems]


def keep_apart(target: Path, *sources: Path) -> None:
    """What is read must not be written over."""
    read = {f.resolve() for source in sources for f in data_files(source)}
    if target.resolve() in read:
        raise ValueError(f"{target} is what is read: write to another file")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "trl",
    format: str = "auto",
    images: str = "",
    options: dict[str, Any] | None = None,
    on_error: str = "raise",
    change: Callable[[list[Record]], list[Record]] | None = None,
) -> Conversion:
    """Write `source` as `target` in the format `to`; "trl" is the canonical form and carries everything.

    `change` maps the list of all records (which are then held in memory) to those to write: subsets, flipped labels.
    """
    source, target = Path(source), Path(target)
    keep_apart(target, source)
    if to == "rows":
        if format != "auto" or images or options or change:
            raise ValueError("--to rows copies a table as it is: format, images, options, share and flip do not apply")
        return _as_rows(source, target)
    if on_error not in ("raise", "drop"):
        raise ValueError(f"--on-error: {on_error!r} is not raise or drop")
    _writable(target, to)
    root = Path(images) if images else source if source.is_dir() else source.parent
    fmt, result = format_of(source, format), Conversion()
    known_options([fmt], options or {})
    given = {"root": root, **(options or {})}

    def records() -> Iterator[Record]:
        for row in iterate(source):
            try:
                yield from read_row(fmt, row, given)
                result.unused.update(unused(fmt, row.value))
            except BadRow as error:
                if on_error == "raise":
                    raise ValueError(f"{row.source}: {error}") from None
                result.problems.append(Problem(row.source, error.kind, str(error)))

    write_records(iter(change(list(records()))) if change else records(), target, to, root, result)
    return result


def _as_rows(source: Path, target: Path) -> Conversion:
    """Any readable table (DGPref's pickles above all) as JSONL, row by row as it is."""
    if target.suffix != ".jsonl":
        raise ValueError(f"{target.name}: rows are written as .jsonl")
    result = Conversion()

    with whole(target) as temporary, open(temporary, "w", encoding="utf-8") as f:
        for row in iterate(source):
            if isinstance(row.value, BadRow):
                result.problems.append(Problem(row.source, row.value.kind, str(row.value)))
                continue
            f.write(_json_text(row.value) + "\n")
            result.records += 1
    return result


def _writable(target: Path, to: str) -> None:
    suffix = target.suffix.lower()
    if to not in FORMATS or FORMATS[to].write is None:
        raise ValueError(f"--to: unknown format {to!r}; choose one of {', '.join(FORMATS)}")
    if suffix not in SUFFIXES:
        raise ValueError(f"{target.name}: write one of {', '.join(SUFFIXES)}")
    if suffix == ".tsv" and to != "rlhfv":
        raise ValueError(f"{target.name}: .tsv is rlhfv's legacy form alone")
    if (suffix == ".pkl") != (to == "dgpref"):
        raise ValueError(f"{target.name}: dgpref is written as .pkl, and nothing else is")


def write_records(records: Iterator[Record], target: Path, to: str, root: Path, result: Conversion) -> None:
    """Records whose relative images are under `root`, as a file that appears whole or not at all."""
    _writable(target, to)
    suffix, write = target.suffix.lower(), FORMATS[to].write
    assert write is not None

    def rows() -> Iterator[dict]:
        for record in records:
            try:
                moved = _moved(record, root, target, embed=suffix in (".parquet", ".tsv"))
            except BadRow as error:
                raise ValueError(f"{record.source}: {error}") from None
            out, lost = write(moved)
            result.lost.update(lost)
            if out is not None:
                result.records += 1
                yield out

    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as temporary:
        WRITERS[suffix](temporary, rows())
        if not result.records:
            why = [f"not carried: {name} (of {n} records)" for name, n in result.lost.most_common(1)]
            why += [f"{len(result.problems)} rows are bad, the first: {p}" for p in result.problems[:1]]
            raise ValueError("; ".join([f"nothing is left to write, so {target.name} is not made", *why]))


def _moved(record: Record, root: Path, target: Path, embed: bool) -> Record:
    """The record with images as the new file can name them: bytes kept where the container holds bytes, else files."""
    out: list[Any] = []
    for image in record.images:
        if isinstance(image, str) and not image.startswith(("base64:", "data:")):
            if image.startswith(("http://", "https://")) or Path(image).is_absolute():
                out.append(image)
            else:
                out.append(os.path.relpath((root / image).resolve(), target.parent.resolve()))
            continue
        data, _ = image_bytes(image, root)
        if embed:
            out.append({"bytes": data, "path": image.get("path")} if isinstance(image, dict) else data)
            continue
        ending = next((end for mark, end in SIGNATURES if data.startswith(mark)), ".img")
        path = target.parent / f"{target.stem}_images" / (hashlib.sha256(data).hexdigest()[:32] + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        out.append(os.path.relpath(path, target.parent))
    return replace(record, images=tuple(out))


def _json_text(value: Any) -> str:
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
        for row in rows:
            f.write(_json_text(row) + "\n")


def _json(path: Path, rows: Iterator[dict]) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write("[")
        for i, row in enumerate(rows):
            f.write((",\n" if i else "\n") + _json_text(row))
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

    for row in rows:
        pending.append(_columns(row))
        if len(pending) == batch:
            flush()
    if pending or writer is None:
        flush()
    assert writer is not None
    writer.close()


def _columns(row: dict) -> dict:
    """One type a column: contents as parts, ragged values as JSON text, images as {bytes, path}."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        nested = isinstance(value, dict) and name not in ("image", "question", "chosen", "rejected")
        if (name in JSON_COLUMNS and value is not None) or nested:
            value = _json_text(value)
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
                **{k: str(row.get(k) or "") for k in TSV_COLUMNS},
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
