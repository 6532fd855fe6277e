"""Rows of a data file, one after the other, whatever the container: JSON, JSONL, CSV, TSV (these also as .gz or .zst),
Parquet, Arrow, pickle.

Nothing here knows a format of records; formats/ does. A file is streamed: only pickles are held whole.
Rows are counted from 0 everywhere: "file:row" in messages, in ids and in Example.source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfast.data.containers.hub import address_of, at_revision, fetched, on_hub
from mmfast.data.containers.packed import KINDS, PACKED, kind_of, open_bytes, open_text
from mmfast.data.containers.pickles import load_pickle
from mmfast.data.containers.splits import CARD, KNOWN, choose, common, saved_split
from mmfast.data.containers.tables import read_csv, read_tsv
from mmfast.data.problems import BadRow, check_texts


@dataclass(frozen=True, slots=True)
class Row:
    file: Path
    number: int  # from 0, within the file
    value: Any  # a dict; or the BadRow that reading it raised

    @property
    def source(self) -> str:
        return f"{self.file.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class Shards:
    """The files that a data path stands for. `told`: what it is called, pinned to a commit where a hub has it."""

    folder: Path  # where relative image paths start, and names of files are counted from
    files: tuple[Path, ...]
    told: str
    chosen: bool = False  # by data.split and data.subset, which a file has no use for
    pinned: bool = False  # to a commit of a hub

    def __str__(self) -> str:
        return self.told


Source = str | Path | Shards


def data_files(path: Source) -> list[Path]:
    """The files behind a path: itself, those of a pattern, or the shards of one split of a directory, in name order."""
    return list(shards(path).files)


def shards(path: Source, split: str = "", subset: str = "") -> Shards:
    """What a path of this machine stands for."""
    if isinstance(path, Shards):
        return path
    given, path = str(path), Path(path)
    if not path.exists() and any(c in path.name for c in "*?["):
        files = [f for f in sorted(path.parent.glob(path.name)) if kind_of(f) in READERS]
        if files:
            return Shards(path.parent, tuple(files), str(path))
    if not path.exists():
        hint = address_of(given) and (
            " ([data] path, mmfast init, and mmfast data show, check and convert read it if a hub has it)"
        )
        raise ValueError(f"data.path: {given} does not exist{hint or ''}")
    if path.is_file():
        if kind_of(path) not in READERS:
            raise ValueError(f"data.path: {path.name}: unknown file type; known are {KNOWN}")
        return Shards(path.parent, (path,), str(path))
    if (path / "dataset_dict.json").exists():
        return Shards(path, shards(saved_split(path, split)).files, str(path), chosen=True)
    card = path / CARD
    wanted = choose(
        (file.relative_to(path).as_posix() for file in path.rglob("*")),
        card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else "",
        subset,
        split,
        f"the folder {path}",
        lambda some, all: f'"{path / common(some, all)}" (a folder, a file, or a pattern for several)',
    )
    return Shards(path, tuple(path / file for file in wanted), str(path), chosen=True)


def located(
    paths: Sequence[Source],
    split: str = "",
    subset: str = "",
    revision: str = "",
    notes: Path | None = None,
    tell: Callable[[str], None] = print,
) -> list[Shards]:
    """What paths stand for: of this machine, or ids of a hub's data sets, whose files are fetched. `notes`: where it is
    kept which commit was seen (hub.py)."""
    out = []
    for path in paths:
        address = None if isinstance(path, Shards) else on_hub(path)
        if address is None:
            out.append(shards(path, split, subset))
            continue
        address, folder, files, chosen = fetched(at_revision(address, revision), subset, split, notes, tell)
        out.append(Shards(folder, tuple(folder / file for file in files), str(address), chosen, pinned=True))
    if revision and not any(source.pinned for source in out):
        raise ValueError("data.revision has no effect: data.path names no data set of a hub")
    if (split or subset) and not any(source.chosen for source in out):
        key = "split" if split else "subset"
        raise ValueError(f"data.{key} has no effect: data.path names files, not a folder or a data set of a hub")
    return out


def iterate(path: Source) -> Iterator[Row]:
    for file in data_files(path):
        try:
            for i, value in enumerate(READERS[kind_of(file)](file)):
                if value is not None:  # a blank line keeps its number
                    yield Row(file, i, _checked(value))
        except OSError as error:
            if file.suffix.lower() not in PACKED or error.errno:
                raise
            raise ValueError(f"{file.name} cannot be unpacked ({error}): it is damaged, or no {file.suffix}") from None


def count(file: Path) -> int:
    """The rows of a file, blank lines too, where they are counted without being parsed; 0 elsewhere."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return int(pq.ParquetFile(file).metadata.num_rows)
        except ValueError:  # no parquet: told when it is read
            return 0
    if file.suffix not in (".jsonl", ".ndjson") or _is_array(file):
        return 0
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def _checked(value: Any) -> Any:
    try:
        check_texts(value)
    except BadRow as error:
        return error
    return value


def _json(file: Path) -> Iterator[Any]:
    with open_text(file) as f:
        first = next((chunk.lstrip()[0] for chunk in iter(lambda: f.read(4096), "") if chunk.strip()), "")
    return _json_array(file) if first == "[" else _json_document(file)


def _parse_line(text: str) -> Any:
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        return BadRow("json", f"not valid JSON ({error})")
    return value if isinstance(value, dict) else BadRow("json", f"a JSON {type(value).__name__}, not an object")


def _json_lines(file: Path) -> Iterator[Any]:
    """A line a row; or the one array of objects that RLAIF-V writes into files of this name."""
    if _is_array(file):
        yield from _json_array(file)
        return
    with open_bytes(file) as f:
        for i, line in enumerate(f):
            try:
                yield _parse_line(line.decode("utf-8-sig" if i == 0 else "utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow("json", f"not UTF-8 ({error})")


def _is_array(file: Path) -> bool:
    with open_bytes(file) as f:
        begin = f.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return begin[:1] == b"[" and begin[1:].lstrip()[:1] == b"{"


def _json_document(file: Path) -> Iterator[Any]:
    """A .json file that is not an array: one object on every line, or one object in all."""
    with open_text(file) as f:
        first = f.readline()
    if isinstance(_parse_line(first), dict):
        yield from _json_lines(file)
        return
    try:
        with open_text(file) as f:
            yield json.load(f)
    except ValueError as error:
        raise ValueError(f"{file.name}: neither a JSON array, nor JSON lines, nor one object ({error})") from None


def _json_array(file: Path, chunk_size: int = 1 << 20) -> Iterator[Any]:
    """The elements of one big array, read through a window; a syntax error ends the file, since no border is left."""
    decoder = json.JSONDecoder()
    with open_text(file) as f:
        window = f.read(chunk_size).lstrip()
        at, count, ended = 1, 0, False
        while True:
            while at < len(window) and window[at] in " \t\r\n,":
                at += 1
            if at < len(window) and window[at] == "]":
                _nothing_more(file, window[at + 1 :] + f.read(chunk_size))
                return
            try:
                value, end = decoder.raw_decode(window, at)
                if end == len(window) and not ended:
                    raise ValueError  # a number or literal may go on in the next chunk
            except ValueError as error:
                more = f.read(max(chunk_size, len(window) - at))
                ended = not more
                if ended:
                    raise ValueError(
                        f"{file.name}: the JSON array breaks at element {count + 1} ({error}); "
                        "repair it, or keep one row a line (JSONL), where a broken row costs only itself"
                    ) from None
                window, at = window[at:] + more, 0
                continue
            at, count = end, count + 1
            yield value if isinstance(value, dict) else BadRow("json", f"a JSON {type(value).__name__}, not an object")


def _nothing_more(file: Path, text: str) -> None:
    if text.strip():
        told = f"more stands behind its JSON array: {text.strip()[:40]!r}"
        raise ValueError(f"{file.name}: {told}. Keep one array, or one row a line (JSONL)")


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file.name} is not a Parquet file: {error}") from None
    with source:
        for batch in source.iter_batches(batch_size=64):
            yield from batch.to_pylist()


def _arrow(file: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            reader = (reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, 64):
                yield from batch.slice(start, 64).to_pylist()


def _pickle(file: Path) -> Iterator[Any]:
    """A pickled dict is a table from key to value (DGPref's files); a pickled list of dicts is a list of rows."""
    content = load_pickle(file)
    if isinstance(content, dict):
        for key, value in content.items():
            yield {"key": str(key), "value": value}
    elif isinstance(content, list):
        for value in content:
            yield value if isinstance(value, dict) else BadRow("pickle", f"a {type(value).__name__}, not a dict")
    else:
        raise ValueError(f"{file.name}: pickles a {type(content).__name__}; a dict or a list of dicts is read")


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".json": _json,
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".tsv": read_tsv,
    ".csv": read_csv,
    **dict.fromkeys((".pkl", ".pickle"), _pickle),
}
assert set(READERS) == set(KINDS)
