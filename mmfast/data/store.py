"""The examples of a data set, built once and memory-mapped: what packing and training read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.data.binding import Contents, Variant, damaged, digest_of
from mmfast.data.problems import Report
from mmfast.data.records import Example, ImageInfo
from mmfast.data.symbols import Symbols, join
from mmfast.files import map_arrays, save_arrays, sha256_of

FORMAT_VERSION = 3  # counted up when the same rows become other examples


class ExampleStore:
    """A sequence of Examples over the arrays of its Symbols, all memory-mapped; an Example is put together when it is
    asked for, and planning and packing never ask."""

    def __init__(
        self,
        path: str | Path,
        order: np.ndarray | None = None,
        roots: Sequence[str] = (),
        *,
        chosen_alone: bool = False,
        runner_up: bool = False,
    ):
        """`order`: which stored example stands at an index (mixing weights repeat and leave out). `roots`: where the
        image files are (binding.py); without them images are known but cannot be opened."""
        self.path, self.roots, self.order = Path(path), list(roots), order
        self.chosen_alone, self.runner_up = chosen_alone, runner_up
        self.manifest: dict[str, Any] = self._read("manifest.json")
        try:
            arrays, metadata = map_arrays(self.path / "examples.safetensors")
            self.files = arrays.pop("files")  # int32, the data file of each stored example
            self.stored = Symbols(**arrays, image_ids=json.loads(metadata["image_ids"]), runner_up=False)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(damaged(self.path, error)) from None

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(damaged(self.path, f"{name}: {error}")) from None

    def __getstate__(self) -> dict[str, Any]:  # a worker maps the file itself
        return {name: getattr(self, name) for name in ("path", "order", "roots", "chosen_alone", "runner_up")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def symbols(self) -> Symbols:
        """What planning and packing read: the stored arrays, in this store's order."""
        symbols = self.stored if self.order is None else self.stored.pick(self.order)
        symbols = replace(symbols, runner_up=self.runner_up)
        return symbols.chosen_alone() if self.chosen_alone else symbols

    def subset(self, numbers: Sequence[int] | np.ndarray) -> ExampleStore:
        """Some of the examples, in this order."""
        order = np.arange(len(self)) if self.order is None else self.order
        return self._changed(order=order[np.asarray(numbers, np.int64)])

    def without_rejected(self) -> ExampleStore:
        """SFT on a file of pairs takes the chosen side."""
        return self._changed(chosen_alone=True)

    def with_runner_up(self) -> ExampleStore:
        """Rejected sides are read by their runner-up tokens (objective.compat = "sima")."""
        return self._changed(runner_up=True)

    def _changed(self, **changes: Any) -> ExampleStore:
        other = ExampleStore.__new__(ExampleStore)
        vars(other).update(vars(self) | changes)
        for name in ("symbols", "digest"):
            vars(other).pop(name, None)
        return other

    def __len__(self) -> int:
        return len(self.symbols)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        symbols, image = self.symbols, self.manifest["image_token_id"]
        name, source = symbols.name(index)
        chosen, rejected = symbols.branch_of[index].tolist()
        return Example(
            id=name,
            source=source,
            chosen=symbols.branch(chosen, image),
            rejected=None if rejected < 0 else symbols.branch(rejected, image),
            weight=float(symbols.example_weights[index]),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @property
    def preference(self) -> bool:
        return self.symbols.is_pairs

    # images

    @cached_property
    def images(self) -> Mapping[str, ImageInfo]:
        """Each distinct image, with its file under this store's roots."""
        known = self._read("images.json")
        where: dict[str, str] = {}
        for root, name, content, _ in known["files"]:
            where.setdefault(content, os.path.join(self.roots[root], name) if self.roots else name)
        return {i["id"]: image_info(i, where[i["id"]]) for i in known["images"]}

    def open_image(self, name: str) -> bytes:
        """The bytes of an image's file; raises if they are not those the examples were built from."""
        source = self.images[name].source
        data = Path(source).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise ValueError(
                f"{source} has changed since the examples were built; start again to rebuild what has (if its time was "
                f"set back, delete {self.path.parent / 'bindings'} first)"
            )
        return data

    # the rest

    @cached_property
    def report(self) -> Report:
        return Report.from_dict(self._read("report.json"))

    @cached_property
    def digest(self) -> str:
        """Names the examples and their order: data, images by content, template, tokenizer, image processing,
        settings. No path is in it: the same data and pictures elsewhere have the same digest."""
        digest = self.manifest["digest"]
        if self.order is not None:
            digest = hashlib.sha256(digest.encode() + self.order.tobytes()).hexdigest()[:24]
        return digest


def image_info(image: dict[str, Any], source: str) -> ImageInfo:
    grid, words = image["grid"], image.get("words", ())
    own = {"source": source, "grid": tuple(grid) if grid else None, "words": tuple(map(tuple, words))}
    return ImageInfo(**{**image, **own})


class Earlier:
    """The examples of another variant of a store, by row: where a row's pictures are the same ones, so is its example.

    Rows with notes are made anew, since a note does not say which of a row's examples it is about.
    """

    def __init__(self, variant: Variant):
        self.store = ExampleStore(variant.path)
        self.contents = {(root, name): content for root, name, content, _ in variant.files}
        noted = {note.source for note in self.store.report.notes}
        self.rows: dict[tuple[int, str], list[int]] = {}
        for i, file in enumerate(self.store.files.tolist()):
            source = self.store.stored.name(i)[1]
            if source not in noted:
                self.rows.setdefault((file, source), []).append(i)

    def find(self, file: int, source: str, number: int, pictures: Iterable[tuple[str, str]]) -> Example | None:
        """The `number`-th example of a row; `pictures`: (name, content id) of its files now."""
        rows = self.rows.get((file, source), [])
        if number >= len(rows) or any(self.contents.get((file, name)) != now for name, now in pictures):
            return None
        return self.store[rows[number]]


class Unfit(Exception):
    """Parts that make no store together."""


def write_part(path: Path, symbols: Symbols, files: Sequence[int], content: dict[str, Any]) -> None:
    """The examples of some rows, `files` naming the data file of each. `content`: images, files and report."""
    arrays = symbols.arrays() | {"files": np.asarray(files, np.int32)}
    save_arrays(path, arrays, {"image_ids": json.dumps(list(symbols.image_ids)), "content": json.dumps(content)})


def contents_of(parts: list[Path]) -> Contents:
    """What every image file was when the parts were built. Raises Unfit where one part saw another picture, or is
    damaged."""
    contents: Contents = {}
    for part in parts:
        try:
            files = json.loads(map_arrays(part)[1]["content"])["files"]
            for (root, name), (content, stamp) in files:
                where = root, name
                if contents.setdefault(where, (content, tuple(stamp)))[0] != content:
                    raise Unfit(f"{name} changed between parts")
        except (ValueError, LookupError, TypeError) as error:
            raise Unfit(str(error)) from None
    return contents


def merge_parts(path: Path, parts: list[Path], manifest: dict[str, Any]) -> None:
    """Write a store into `path` from its parts, in order."""
    symbols, files = [], []
    infos: dict[str, dict] = {}
    report = Report()
    for part in parts:
        arrays, metadata = map_arrays(part)
        files.append(arrays.pop("files"))
        symbols.append(Symbols(**arrays, image_ids=json.loads(metadata["image_ids"]), runner_up=False))
        content = json.loads(metadata["content"])
        for info in content["images"]:
            infos.setdefault(info["id"], {k: v for k, v in info.items() if k != "source"})
        report.merge(Report.from_dict(content["report"]))
    whole = join(symbols)
    arrays = whole.arrays() | {"files": np.concatenate([np.empty(0, np.int32), *files])}
    pictures = sorted((*where, content, stamp[2]) for where, (content, stamp) in contents_of(parts).items())
    path.mkdir(exist_ok=True)
    save_arrays(path / "examples.safetensors", arrays, {"image_ids": json.dumps(list(whole.image_ids))})
    own = {
        "images.json": {"images": [infos[i] for i in whole.image_ids], "files": pictures},
        "report.json": report.to_dict(),
    }
    for name, value in own.items():
        (path / name).write_text(json.dumps(value))
    written = {name: sha256_of(path / name) for name in ("examples.safetensors", *own)}
    named = digest_of(pictures)
    digest = hashlib.sha256(f"{manifest['key']}{named}".encode()).hexdigest()[:24]
    told = {**manifest, "images": named, "digest": digest, "own": written}
    (path / "manifest.json").write_text(json.dumps(told))
