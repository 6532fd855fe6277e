"""Files as they are inside .gz and .zst, for readers of text; pyarrow unpacks both as a stream."""

from __future__ import annotations

import io
from pathlib import Path, PurePath
from typing import BinaryIO, TextIO, cast

PACKED = {".gz": "gzip", ".zst": "zstd"}
KINDS = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".pkl", ".pickle", ".tsv", ".csv")  # of rows; a folder is
# read by the first of them that it holds
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNPACKED = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")  # what is read out of them; the others pack their own columns


def kind_of(file: PurePath) -> str:
    """The suffix that tells a file's container: ".jsonl" for a.jsonl and a.jsonl.gz; "" for what is not read packed."""
    suffix = file.suffix.lower()
    if suffix not in PACKED:
        return suffix
    inner = Path(file.stem).suffix.lower()
    return inner if inner in UNPACKED else ""


def open_bytes(file: Path) -> BinaryIO:
    if file.suffix.lower() not in PACKED:
        return open(file, "rb")
    import pyarrow as pa

    file.open("rb").close()  # what cannot be opened is told in Python's words
    stream = pa.input_stream(str(file), compression=PACKED[file.suffix.lower()])
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream)))


def open_text(file: Path, newline: str | None = None) -> TextIO:
    return io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", newline=newline)
