"""Build the examples of a data file once: rows -> records -> examples, in several processes, resumable, kept by key."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.data.examples import ExampleBuilder, ExampleSettings
from mmfast.data.flat import save_arrays
from mmfast.data.image_processors import ImageProcessor
from mmfast.data.imagefiles import ImageIndex
from mmfast.data.problems import BadRow, Problem, Report
from mmfast.data.readers import Format, format_of, known_options, read_row, unused
from mmfast.data.rows import Row, data_files, iterate
from mmfast.data.store import FORMAT_VERSION, ExampleStore, Part, merge_parts
from mmfast.data.templates import Template
from mmfast.data.tokens import Tokenizer, model_directory

CHUNK = 256  # rows a worker takes, and what a kill costs at most for each worker


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The [data] section of a configuration, and what examples need of other sections."""

    path: str | Sequence[dict[str, Any]]  # a file or directory, or several as {path, weight}
    format: str = "auto"
    images: str = ""  # root of relative image paths; default: beside the file
    aspect: str = "auto"
    template: str = "auto"
    turns: str = "last"
    max_length: int = 4096
    max_words: int = 0
    truncate: str = "never"
    on_error: str = "raise"
    limit: int = 0  # rows of each file
    workers: int = 2
    segments: str = "none"  # objective.segments where objective.gamma != 1, or "record"
    insertions: str = "ignore"
    min_pixels: int = 0
    max_pixels: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the reader (docs/formats.md)
    seed: int = 0  # of a fractional mixing weight

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "drop"):
            raise ValueError(f"data.on_error: {self.on_error!r} is not raise or drop")

    def files(self) -> list[tuple[str, float]]:
        if isinstance(self.path, str | Path):
            return [(str(self.path), 1.0)]
        out = []
        for item in self.path:
            if not isinstance(item, dict) or "path" not in item or not set(item) <= {"path", "weight"}:
                raise ValueError(f"data.path: {item!r} is not {{ path = ..., weight = ... }}")
            weight = float(item.get("weight", 1.0))
            if not weight > 0:
                raise ValueError(f"data.path: the weight of {item['path']} is {weight}; it must be above 0")
            out.append((str(item["path"]), weight))
        return out


@dataclass(slots=True)
class Maker:
    """What a worker needs; set in its process before the pool starts."""

    formats: list[Format]
    roots: list[Path]
    builder: ExampleBuilder
    index: ImageIndex
    options: dict[str, Any]
    drop: bool

    def part(self, target: Path, file: int, rows: list[Row]) -> Report:
        """One chunk of rows to one part file. With on_error = "raise" the first bad row ends the build."""
        part, report = Part(), Report()
        for row in rows:
            report.rows += 1
            try:
                for record in read_row(self.formats[file], row, {"root": self.roots[file], **self.options}):
                    images = [self.index.look_up(i, self.roots[file]) for i in record.images]
                    example, notes = self.builder.build(record, images)
                    part.add(example, file)
                    report.examples += 1
                    report.notes += notes
                report.count_unused(dict.fromkeys(unused(self.formats[file], row.value), 1))
            except BadRow as error:
                problem = Problem(row.source, error.kind, str(error))
                if not self.drop:
                    raise ValueError(f"{problem}. Repair the row, or set data.on_error = 'drop'") from None
                report.dropped.append(problem)
        content = {
            "names": part.names,
            "image_ids": list(part.images),
            "images": [asdict(self.index.infos[i]) for i in part.images],
            "stamps": {i: self.index.stamps[i] for i in part.images if i in self.index.stamps},
            "report": report.to_dict(),
        }
        save_arrays(target, part.arrays(), {"content": json.dumps(content)})
        return report


_maker: Maker | None = None


def _work(target: Path, file: int, rows: list[Row]) -> Report:
    assert _maker is not None
    return _maker.part(target, file, rows)


def file_digest(path: Path, remembered: Path) -> str:
    """sha256 of a file; remembered under its path, size and time, so that a second start need not read it."""
    status = path.stat()
    stamp = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    note = remembered / hashlib.sha256(stamp.encode()).hexdigest()
    if note.exists():
        return note.read_text()
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    remembered.mkdir(parents=True, exist_ok=True)
    note.write_text(digest.hexdigest())
    return digest.hexdigest()


def _model_digest(folder: Path, remembered: Path) -> str:
    """Everything in a model's directory that tokenizer, template and image processor are made of; not its weights."""
    names = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".model", ".txt"))
    parts = {p.name: file_digest(p, remembered) for p in names if not p.name.endswith(".index.json")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build(
    data: DataSettings, model: str | Path, cache: str | Path, *, progress: bool = True, report_to: Any = print
) -> ExampleStore:
    """The examples of `data` for `model`; from the cache where they are already there, else built into it.

    One process builds (rank 0 of a distributed run); the others open the same store afterwards.
    """
    folder, cache = model_directory(model), Path(cache)
    files = [f for path, _ in data.files() for f in data_files(path)]
    digests = [file_digest(f, cache / "digests") for f in files]
    settings = ExampleSettings(
        turns=data.turns,
        max_length=data.max_length,
        max_words=data.max_words,
        truncate=data.truncate,
        segments=data.segments,
        insertions=data.insertions,
    )
    key = {
        "version": FORMAT_VERSION,
        "data": digests,
        "model": _model_digest(folder, cache / "digests"),
        "template": data.template,
        "settings": asdict(settings),
        "image": [data.aspect, data.min_pixels, data.max_pixels],
        "format": data.format,
        "images": str(Path(data.images).resolve()) if data.images else [str(f.resolve().parent) for f in files],
        "on_error": data.on_error,
        "limit": data.limit,
        "options": data.options,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = cache / "examples" / name
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs that start together one builds and the other finds
        if not (path / "manifest.json").exists() or _images_changed(path):
            _build(data, folder, path, cache, settings, progress, {**key, "key": name})
            report_to(ExampleStore(path).report.summary())
    store = ExampleStore(path)
    if not len(store.arrays["chosen"]):
        raise ValueError(f"data.path: no example is left: {store.report.summary()}")
    return ExampleStore(path, _mixed(store, data))


def _images_changed(path: Path) -> bool:
    """Image files are named by content, but found by path: a changed or moved one makes the store stale."""
    found = json.loads((path / "images.json").read_text())
    for info in found["images"]:
        try:
            status = os.stat(info["source"])
        except OSError:
            return True
        stamp = found["stamps"].get(info["id"])
        if stamp and stamp != [status.st_size, status.st_mtime_ns]:
            return True
    return False


def _build(
    data: DataSettings,
    folder: Path,
    path: Path,
    cache: Path,
    settings: ExampleSettings,
    progress: bool,
    manifest: dict[str, Any],
) -> None:
    global _maker
    formats, roots, sources = [], [], []
    for given, _ in data.files():
        formats.append(format_of(given, data.format))
        base = Path(given)
        roots.append(Path(data.images) if data.images else base if base.is_dir() else base.parent)
        sources.append(given)
    known_options(formats, data.options)
    template = Template(data.template, Tokenizer.load(folder))
    reads_images = template.tokenizer.image_token_id is not None
    processor = partial(ImageProcessor.from_model_dir, folder, data.aspect, data.min_pixels, data.max_pixels)
    _maker = Maker(
        formats=formats,
        roots=roots,
        builder=ExampleBuilder(template, settings),
        index=ImageIndex(processor if reads_images else None, cache / "images"),
        options=data.options,
        drop=data.on_error == "drop",
    )
    manifest |= {
        "formats": [f.name for f in formats],
        "image_token_id": template.tokenizer.image_token_id,
        "template_text": template.key,
        "tokenizer": template.tokenizer.digest,
        "processor": processor().digest() if reads_images else "",
    }
    (path / "manifest.json").unlink(missing_ok=True)
    jobs = ((path / f"part-{n:06}.safetensors", file, rows) for n, (file, rows) in enumerate(_chunks(sources, data)))
    try:
        parts = _run(jobs, data.workers, progress)
    finally:
        _maker = None
    merge_parts(path, parts, manifest)


def _chunks(sources: list[str], data: DataSettings) -> Iterator[tuple[int, list[Row]]]:
    for file, source in enumerate(sources):
        rows = iterate(source)
        if data.limit:
            rows = islice(rows, data.limit)
        while chunk := list(islice(rows, CHUNK)):
            yield file, chunk


def _run(jobs: Iterator[tuple[Path, int, list[Row]]], workers: int, progress: bool) -> list[Path]:
    """Every part that is not there yet; at most two chunks a worker are in flight, so a file is never in memory."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    parts: list[Path] = []
    columns = (TextColumn("examples"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]}"))
    with Progress(*columns, TimeElapsedColumn(), disable=not progress) as bar:
        task = bar.add_task("rows", total=None, bad="")
        bad = 0

        def done(report: Report) -> None:
            nonlocal bad
            bad += len(report.dropped)
            bar.update(task, advance=report.rows, bad=f"{bad} dropped" if bad else "")

        def todo() -> Iterator[tuple[Path, int, list[Row]]]:
            for target, file, rows in jobs:
                parts.append(target)
                if target.exists():
                    bar.update(task, advance=len(rows))
                else:
                    yield target, file, rows

        if workers <= 1:
            for job in todo():
                done(_work(*job))
            return parts
        running: set[Future] = set()
        pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"))
        try:
            for job in todo():
                if len(running) >= 2 * workers:
                    ready, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        done(future.result())
                running.add(pool.submit(_work, *job))
            for future in running:
                done(future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return parts


def _mixed(store: ExampleStore, data: DataSettings) -> np.ndarray | None:
    """An epoch holds weight x n examples of a file: whole repeats, and a seeded choice for the fraction."""
    weights = [w for _, w in data.files()]
    if all(w == 1.0 for w in weights):
        return None
    files = store.arrays["files"]
    order = []
    for k, weight in enumerate(weights):
        rows = np.flatnonzero(files == k)
        whole, rest = divmod(round(weight * len(rows)), len(rows)) if len(rows) else (0, 0)
        order += [rows] * whole
        order.append(np.sort(np.random.default_rng([data.seed, k]).permutation(rows)[:rest]))
    return np.concatenate(order)
