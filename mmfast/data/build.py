"""Build the examples of a data file once: rows -> records -> examples, in several processes, resumable, kept by key."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmfast.data.binding import Place, Variant
from mmfast.data.containers.read import Row, count, data_files, iterate, shards
from mmfast.data.examples import ExampleBuilder
from mmfast.data.formats.dgpref import BESIDE
from mmfast.data.formats.known import Format, format_of, known_options, read_row, unused
from mmfast.data.images.index import ImageIndex, is_path, unwrapped
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow, Problem, Report
from mmfast.data.records import Example, ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.store import (
    FORMAT_VERSION,
    Earlier,
    ExampleStore,
    Unfit,
    contents_of,
    image_info,
    merge_parts,
    write_part,
)
from mmfast.data.symbols import collapse
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.directory import directory
from mmfast.families import family_of, sources_outside
from mmfast.files import file_digest
from mmfast.progress import Parts

CHUNK = 256  # rows a worker takes, and what a kill costs at most for each worker


class NoExamples(ValueError):
    """Every row of the data is bad."""

    def __init__(self, report: Report):
        first = "; ".join(str(p) for p in report.dropped[:3])
        super().__init__(f"data.path: no example is left: {report.summary()}" + (f". First: {first}" if first else ""))
        self.report = report


@dataclass(slots=True)
class Maker:
    """What a worker needs; set in its process before the pool starts."""

    formats: list[Format]
    roots: list[Path]
    builder: ExampleBuilder
    index: ImageIndex
    options: dict[str, Any]
    drop: bool
    earlier: Earlier | None

    def part(self, target: Path, file: int, rows: list[Row]) -> Report:
        """One chunk of rows to one part file. With on_error = "raise" the first bad row ends the build."""
        examples: list[Example] = []
        report = Report()
        self.index.start()
        for row in rows:
            report.rows += 1
            try:
                records = read_row(self.formats[file], row, {"root": self.roots[file], **self.options})
                for k, record in enumerate(records):
                    images = [self.index.look_up(i, self.roots[file], file) for i in record.images]
                    example, notes = self._earlier(file, k, record, images) or self.builder.build(record, images)
                    examples.append(example)
                    report.examples += 1
                    report.notes += notes
                report.count_unused(dict.fromkeys(unused(self.formats[file], row.value), 1))
            except BadRow as error:
                problem = Problem(row.source, error.kind, str(error))
                if not self.drop:
                    raise ValueError(f"{problem}. Repair the row, or set data.on_error = 'drop'") from None
                report.dropped.append(problem)
        symbols = collapse(examples, self.index.infos, self.builder.tokenizer.image_token_id)
        content = {
            "images": [asdict(self.index.infos[i]) for i in symbols.image_ids],
            "files": [(where, self.index.contents[where]) for where in sorted(self.index.used)],
            "report": report.to_dict(),
        }
        write_part(target, symbols, [file] * len(symbols), content)
        return report

    def _earlier(self, file: int, k: int, record: Record, images: list[ImageInfo]) -> tuple[Example, list] | None:
        if self.earlier is None:
            return None
        names = zip(map(unwrapped, record.images), images, strict=True)
        example = self.earlier.find(file, record.source, k, [(name, i.id) for name, i in names if is_path(name)])
        return None if example is None else (example, [])


_maker: Maker | None = None


def _work(target: Path, file: int, rows: list[Row]) -> Report:
    assert _maker is not None
    return _maker.part(target, file, rows)


def _model_digest(folder: Path, remembered: Path) -> str:
    """Everything in a model's directory that tokenizer, template and image processor are made of; not its weights."""
    names = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".model", ".txt"))
    parts: dict[str, Any] = {p.name: file_digest(p, remembered) for p in names if not p.name.endswith(".index.json")}
    if "config.json" in parts:
        kind = json.loads((folder / "config.json").read_text()).get("model_type", "")
        if sources := sources_outside(family_of(kind)):
            parts["family"] = sources
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build(
    data: DataSettings, model: str | Path, cache: str | Path, *, progress: bool = True, report_to: Any = print
) -> ExampleStore:
    """The examples of `data` for `model` and for the pictures that lie under its roots (binding.py); from the cache
    where they are already there, else built into it. A finished cache is only read.

    One process builds (rank 0 of a distributed run); the others open what it found (`reopen`).
    """
    folder, cache = directory(model), Path(cache)
    data = data.here(cache, report_to)
    key = {
        "version": FORMAT_VERSION,
        **_data_digests(data, cache / "digests"),
        "model": _model_digest(folder, cache / "digests"),
        "template": data.template,
        "settings": data.of_examples(),
        "image": [data.aspect, data.min_pixels, data.max_pixels],
        "format": data.format,
        "on_error": data.on_error,
        "limit": data.limit,
    }
    digest = _digest(key)
    place = Place(cache, _digest([digest, _file_names(data)]), data.roots())
    variant = place.bound()
    if variant is None:
        variant = _bind_or_build(data, folder, place, progress, report_to, {**key, "key": digest})
    store = reopen(variant.path, place.roots, data)
    if not len(store.stored):
        raise NoExamples(store.report)
    return store


def reopen(path: Path, roots: Sequence[str], data: DataSettings) -> ExampleStore:
    """A store that `build` of another process has found (its `path` and `roots`), without looking at any file again."""
    store = ExampleStore(path, roots=roots)
    order = _mixed(store.files, data)
    return store if order is None else store.subset(order)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _data_digests(data: DataSettings, remembered: Path) -> dict[str, Any]:
    """The contents of all that rows are read from: data files, files that options name, DGPref's lists beside them."""
    files = [data_files(path) for path, _ in data.files()]
    beside = {f.parent / name for some in files for f in some for name in BESIDE}
    if any(f.exists() for f in beside) and all(format_of(p, data.format).name != "dgpref" for p, _ in data.files()):
        beside = set()
    options = {
        name: file_digest(Path(value), remembered) if isinstance(value, str) and Path(value).is_file() else value
        for name, value in data.options.items()
    }
    return {
        "data": [[file_digest(f, remembered) for f in some] for some in files],
        "beside": sorted([f.name, file_digest(f, remembered)] for f in beside if f.exists()),
        "options": options,
    }


def _file_names(data: DataSettings) -> list[list[str]]:
    """A renamed file has a store of its own, since messages name it; the digest, and so a run, do not depend on it."""
    sources = [shards(path) for path, _ in data.files()]
    return [[str(file.relative_to(source.folder)) for file in source.files] for source in sources]


def _bind_or_build(
    data: DataSettings, folder: Path, place: Place, progress: bool, report_to: Any, manifest: dict[str, Any]
) -> Variant:
    """Under the place's lock: of two runs that start together one compares or builds and the other finds."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(place.lock())
        except OSError as error:
            variant = place.bind(progress, remember=False)
            if variant is None:
                raise ValueError(
                    f"data.cache: {place.folder} cannot be written ({error.strerror}) and holds no examples of this "
                    "data with these settings and images; name a folder of your own"
                ) from None
            report_to(f"{place.folder} cannot be written: its images are compared anew at each start")
            return variant
        variant = place.bound() or place.bind(progress)
        if variant is None:
            variant = _build(data, folder, place, progress, manifest)
            report_to(ExampleStore(variant.path).report.summary())
        return variant


def _build(data: DataSettings, folder: Path, place: Place, progress: bool, manifest: dict[str, Any]) -> Variant:
    global _maker
    # What reads rows, and what the store's manifest says of it
    template = Template(data.template, Tokenizer.load(folder))
    reads_images = template.tokenizer.image_token_id is not None
    processor = partial(ImageProcessor.from_model_dir, folder, data.aspect, data.min_pixels, data.max_pixels)
    formats = [format_of(path, data.format) for path, _ in data.files()]
    known_options(formats, data.options)
    manifest |= {
        "formats": [f.name for f in formats],
        "image_token_id": template.tokenizer.image_token_id,
        "template_text": template.key,
        "tokenizer": template.tokenizer.digest,
        "processor": processor().digest() if reads_images else "",
    }
    # What other variants of this place know already: images, and whole rows where a row's name is its own
    known = [image for variant in place.variants() for image in variant.images]
    nearest = place.nearest()
    unique = all(len({Path(name).name for name in some}) == len(some) for some in _file_names(data))  # "file:row" is
    earlier = Earlier(nearest) if nearest and unique else None
    # Parts, in several processes; taken only if neither data nor pictures changed meanwhile
    for _ in range(3):
        place.building.mkdir(exist_ok=True)
        jobs = (
            (place.building / f"part-{n:06}.safetensors", file, rows) for n, (file, rows) in enumerate(_chunks(data))
        )
        _maker = Maker(
            formats=formats,
            roots=data.roots(),
            builder=ExampleBuilder(template, data),
            index=ImageIndex(
                processor if reads_images else None,
                Path(place.roots[-1]),
                {i["id"]: image_info(i, "") for i in known},
                place.seen,
            ),
            options=data.options,
            drop=data.on_error == "drop",
            earlier=earlier,
        )
        try:
            parts = _run(jobs, data.workers, progress, _rows(data) if progress else 0)
        finally:
            _maker = None
        now = _data_digests(data, place.folder.parent.parent / "digests")
        if any(manifest[name] != value for name, value in now.items()):
            shutil.rmtree(place.building)
            raise ValueError("data.path: the data changed while examples were built from it; start again")
        try:
            contents = contents_of(parts)
            if place.unchanged(contents):
                merge_parts(place.building / "store", parts, manifest)
                return place.adopt(place.building / "store", contents)
        except Unfit:
            pass  # left by a start that was killed, and damaged since or made from pictures that are others now
        shutil.rmtree(place.building)
        place.seen.clear()
    raise ValueError(f"images under {', '.join(place.roots[:-1])} change while examples are built from them")


def _chunks(data: DataSettings) -> Iterator[tuple[int, list[Row]]]:
    for file, (source, _) in enumerate(data.files()):
        rows = iterate(source)
        if data.limit:
            rows = islice(rows, data.limit)
        while chunk := list(islice(rows, CHUNK)):
            yield file, chunk


def _rows(data: DataSettings) -> int:
    """How many there are, for the time that is left; 0 where only reading all of them would tell."""
    counts = [count(file) for source, _ in data.files() for file in data_files(source)]
    whole = sum(counts) if all(counts) else 0
    return min(whole, data.limit) if data.limit and len(data.files()) == 1 else whole


def _run(jobs: Iterator[tuple[Path, int, list[Row]]], workers: int, progress: bool, rows_in_all: int = 0) -> list[Path]:
    """Every part that is not there yet; at most two chunks a worker are in flight, so a file is never in memory."""
    parts: list[Path] = []
    with Parts(Console(stderr=True), show=progress, width=8) as bars:
        bar, read, bad = bars.part("examples", fleeting=True), 0, 0

        def done(report: Report) -> None:
            nonlocal bad, read
            bad, read = bad + len(report.dropped), read + report.rows
            bar(read, rows_in_all, f"{bad} dropped" if bad else "")

        def todo() -> Iterator[tuple[Path, int, list[Row]]]:
            nonlocal read
            for target, file, rows in jobs:
                parts.append(target)
                if target.exists():
                    read += len(rows)
                    bar(read, rows_in_all)
                else:
                    yield target, file, rows

        # In this process, or in a pool that is kept busy
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


def _mixed(files: np.ndarray, data: DataSettings) -> np.ndarray | None:
    """An epoch holds weight x n examples of a file: whole repeats, and a seeded choice for the fraction."""
    weights = [w for _, w in data.files()]
    if all(w == 1.0 for w in weights):
        return None
    order = []
    for k, weight in enumerate(weights):
        rows = np.flatnonzero(files == k)
        whole, rest = divmod(round(weight * len(rows)), len(rows)) if len(rows) else (0, 0)
        order += [rows] * whole
        order.append(np.sort(np.random.default_rng([data.seed, k]).permutation(rows)[:rest]))
    return np.concatenate(order)
