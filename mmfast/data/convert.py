"""One format into another, by way of records, with a list of what could not be carried."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Source, data_files, iterate, located
from mmfast.data.containers.write import WRITERS
from mmfast.data.formats.known import FORMATS, read_records
from mmfast.data.images.index import image_bytes
from mmfast.data.problems import BadRow, Problem, pass_over, unused_line
from mmfast.data.records import Record
from mmfast.files import whole

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


def keep_apart(target: Path, *sources: Source) -> None:
    """What is read must not be written over."""
    read = {f.resolve() for source in sources for f in data_files(source)}
    if target.resolve() in read:
        raise ValueError(f"{target} is what is read: write to another file")


def convert(
    source: Source,
    target: str | Path,
    *,
    to: str = "trl",
    format: str = "auto",
    images: str = "",
    options: dict[str, Any] | None = None,
    on_error: str = "raise",
    change: Callable[[list[Record]], list[Record]] | None = None,
    split: str = "",
    subset: str = "",
    revision: str = "",
) -> Conversion:
    """Write `source` as `target` in the format `to`; "trl" is the canonical form and carries everything.

    `change` maps the list of all records (which are then held in memory) to those to write: subsets, flipped labels.
    """
    target = Path(target)
    (source,) = located([source], split, subset, revision)
    keep_apart(target, source)
    if to == "rows":
        if format != "auto" or images or options or change:
            raise ValueError("--to rows copies a table as it is: format, images, options, share and flip do not apply")
        return _as_rows(source, target)
    if on_error not in ("raise", "drop"):
        raise ValueError(f"--on-error: {on_error!r} is not raise or drop")
    _writable(target, to)
    root = Path(images) if images else source.folder
    result = Conversion()
    problems = result.problems if on_error == "drop" else None
    records = read_records(source, format, options, problems, root=root, columns=result.unused)
    write_records(iter(change(list(records))) if change else records, target, to, root, result)
    return result


def _as_rows(source: Source, target: Path) -> Conversion:
    """Any readable table (DGPref's pickles above all) as JSONL, row by row as it is."""
    if target.suffix != ".jsonl":
        raise ValueError(f"{target.name}: rows are written as .jsonl")
    result = Conversion()

    def rows() -> Iterator[Any]:
        for row in iterate(source):
            if isinstance(row.value, BadRow):
                pass_over(row.source, row.value, result.problems)
            else:
                result.records += 1
                yield row.value

    with whole(target) as temporary:
        WRITERS[".jsonl"](temporary, rows())
    return result


def _writable(target: Path, to: str) -> None:
    suffix = target.suffix.lower()
    if to not in FORMATS:
        raise ValueError(f"--to: unknown format {to!r}; choose one of {', '.join(FORMATS)}")
    if suffix not in WRITERS:
        raise ValueError(f"{target.name}: write one of {', '.join(WRITERS)}")
    if suffix == ".tsv" and to != "rlhfv":
        raise ValueError(f"{target.name}: .tsv is rlhfv's legacy form alone")
    if (suffix == ".pkl") != (to == "dgpref"):
        raise ValueError(f"{target.name}: dgpref is written as .pkl, and nothing else is")


def write_records(records: Iterator[Record], target: Path, to: str, root: Path, result: Conversion) -> None:
    """Records whose relative images are under `root`, as a file that appears whole or not at all."""
    _writable(target, to)
    suffix = target.suffix.lower()

    def rows() -> Iterator[dict]:
        for record in records:
            try:
                moved = _moved(record, root, target, embed=suffix in (".parquet", ".tsv"))
            except BadRow as error:
                raise ValueError(f"{record.source}: {error}") from None
            out, lost = FORMATS[to].to_row(moved)
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
    return replace(record, images=tuple(moved_image(image, root, target, embed) for image in record.images))


def moved_image(image: Any, root: Path, target: Path, embed: bool = False) -> Any:
    """An image as a file at `target` can name it. `embed`: it holds bytes; else they become a file beside it."""
    if isinstance(image, str) and not image.startswith(("base64:", "data:")):
        image = image.removeprefix("file://")
        if image.startswith(("http://", "https://")) or Path(image).is_absolute():
            return image
        return os.path.relpath((root / image).resolve(), target.parent.resolve())
    data, _ = image_bytes(image, root)
    if embed:
        return {"bytes": data, "path": image.get("path")} if isinstance(image, dict) else data
    ending = next((end for mark, end in SIGNATURES if data.startswith(mark)), ".img")
    path = target.parent / f"{target.stem}_images" / (hashlib.sha256(data).hexdigest()[:32] + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return os.path.relpath(path, target.parent)
