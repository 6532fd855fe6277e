"""The examples of a data set, built once and memory-mapped: what packing and training read.

Branches (a prompt with one response) are numbered through; an example names its chosen branch and its rejected one.
Planning uses the flat arrays alone; an Example is put together when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.data.binding import Contents, Variant, damaged, digest_of
from mmfast.data.problems import Report
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.files import map_arrays, offsets_of, save_arrays, sha256_of

FORMAT_VERSION = 2  # counted up when the same rows become other examples


class ExampleStore:
    """A sequence of Examples. Arrays, all memory-mapped (E examples, B branches, I images):

    ids int32[sum L], id_offsets int64[B+1]          token ids; an image is one placeholder
    spans int32[S,2], span_offsets int64[B+1]        scored ranges, counted within the branch
    image_refs int32[sum], image_offsets int64[B+1]  rows of the image table, in order of the placeholders
    changed uint8[sum n], weights float32[sum n]     of the scored tokens, scored_offsets int64[B+1]; empty when unused
    chosen int64[E], rejected int64[E] (-1: SFT)     branches of STORED examples; `order` maps an index to a row
    image_tokens int32[I]                            slots of each image
    """

    def __init__(self, path: str | Path, order: np.ndarray | None = None, roots: Sequence[str] = ()):
        """`roots`: where the image files are (binding.py); without them images are known but cannot be opened."""
        self.path = Path(path)
        self.roots = list(roots)
        self.manifest: dict[str, Any] = self._read("manifest.json")
        try:
            self.arrays, metadata = map_arrays(self.path / "examples.safetensors")
            self.image_ids: list[str] = json.loads(metadata["image_ids"])
        except (OSError, ValueError, LookupError) as error:
            raise ValueError(damaged(self.path, error)) from None
        self._order = order

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(damaged(self.path, f"{name}: {error}")) from None

    def __getstate__(self) -> dict[str, Any]:  # a worker maps the file itself
        return {"path": self.path, "order": self._order, "roots": self.roots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def order(self) -> np.ndarray:
        """int64[len(self)]: which stored example stands at an index (mixing weights repeat and leave out)."""
        return np.arange(len(self.arrays["chosen"])) if self._order is None else self._order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        row = int(self.order[index])
        rejected = int(self.arrays["rejected"][row])
        name, source = self._names[row]
        return Example(
            id=name,
            source=source,
            chosen=self.branch(int(self.arrays["chosen"][row])),
            rejected=None if rejected < 0 else self.branch(rejected),
            weight=float(self.arrays["example_weights"][row]),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def branch(self, number: int) -> Branch:
        a = self.arrays
        ids = a["ids"][a["id_offsets"][number] : a["id_offsets"][number + 1]]
        spans = a["spans"][a["span_offsets"][number] : a["span_offsets"][number + 1]]
        images = a["image_refs"][a["image_offsets"][number] : a["image_offsets"][number + 1]]
        scored = slice(*a["scored_offsets"][number : number + 2])
        changed, weights = a["has_changed"][number], a["has_weights"][number]
        return Branch(
            ids=np.asarray(ids),
            images=tuple(self.image_ids[i] for i in images),
            spans=tuple((int(s), int(e)) for s, e in spans),
            changed=a["changed"][scored].astype(bool) if changed else None,
            weights=np.asarray(a["weights"][scored]) if weights else None,
        )

    # planning

    @property
    def preference(self) -> bool:
        return bool((self.arrays["rejected"] >= 0).all()) and len(self.arrays["rejected"]) > 0

    @cached_property
    def branch_lengths(self) -> np.ndarray:
        """int64[B]: tokens of each branch with its image slots."""
        a = self.arrays
        text = np.diff(a["id_offsets"])
        slots = np.concatenate([[0], np.cumsum(a["image_tokens"][a["image_refs"]].astype(np.int64) - 1)])
        return text + slots[a["image_offsets"][1:]] - slots[a["image_offsets"][:-1]]

    @cached_property
    def scored_counts(self) -> np.ndarray:
        """int64[B]: scored tokens of each branch."""
        return np.diff(self.arrays["scored_offsets"])

    @property
    def chosen(self) -> np.ndarray:
        """int64[len(self)]: the chosen branch of each example, in the order of this store."""
        return self.arrays["chosen"][self.order]

    @property
    def rejected(self) -> np.ndarray:
        return self.arrays["rejected"][self.order]

    @property
    def example_ids(self) -> list[str]:
        names = self._names
        return [names[i][0] for i in self.order]

    # images

    @cached_property
    def images(self) -> Mapping[str, ImageInfo]:
        """Each distinct image, with its file under this store's roots."""
        found = self._read("images.json")
        where: dict[str, str] = {}
        for root, name, content, _ in found["files"]:
            where.setdefault(content, os.path.join(self.roots[root], name) if self.roots else name)
        return {i["id"]: image_info(i, where[i["id"]]) for i in found["images"]}

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
    def _names(self) -> list[list[str]]:
        return self._read("names.json")

    @cached_property
    def report(self) -> Report:
        return Report.from_dict(self._read("report.json"))

    @cached_property
    def digest(self) -> str:
        """Names the examples and their order: data, images by content, template, tokenizer, image processing,
        settings. No path is in it: the same data and pictures elsewhere have the same digest."""
        digest = self.manifest["digest"]
        if self._order is not None:
            digest = hashlib.sha256(digest.encode() + self._order.tobytes()).hexdigest()[:24]
        return digest


def image_info(image: dict[str, Any], source: str) -> ImageInfo:
    return ImageInfo(**{**image, "source": source, "grid": tuple(image["grid"]) if image["grid"] else None})


class Earlier:
    """The examples of another variant of a store, by row: where a row's pictures are the same ones, so is its example.

    Rows with notes are made anew, since a note does not say which of a row's examples it is about.
    """

    def __init__(self, variant: Variant):
        self.store = ExampleStore(variant.path)
        self.contents = {(root, name): found for root, name, found, _ in variant.files}
        noted = {note.source for note in self.store.report.notes}
        self.rows: dict[tuple[int, str], list[int]] = {}
        for i, (file, (_, source)) in enumerate(zip(self.store.arrays["files"], self.store._names, strict=True)):
            if source not in noted:
                self.rows.setdefault((int(file), source), []).append(i)

    def find(self, file: int, source: str, number: int, pictures: Iterable[tuple[str, str]]) -> Example | None:
        """The `number`-th example of a row; `pictures`: (name, content id) of its files now."""
        found = self.rows.get((file, source), [])
        if number >= len(found) or any(self.contents.get((file, name)) != now for name, now in pictures):
            return None
        return self.store[found[number]]


class Part:
    """Examples gathered into flat arrays, in a worker; merged into a store at the end."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.images: dict[str, int] = {}
        self.lists: dict[str, list] = {
            k: []
            for k in (
                "ids", "spans", "image_refs", "changed", "weights", "id_lengths", "span_counts", "image_counts",
                "scored_lengths", "has_changed", "has_weights", "chosen", "rejected", "example_weights", "files",
            )
        }  # fmt: skip

    def add(self, example: Example, file: int) -> None:
        x = self.lists
        x["chosen"].append(self._branch(example.chosen))
        x["rejected"].append(-1 if example.rejected is None else self._branch(example.rejected))
        x["example_weights"].append(example.weight)
        x["files"].append(file)
        self.names.append((example.id, example.source))

    def _branch(self, branch: Branch) -> int:
        x = self.lists
        number = len(x["id_lengths"])
        n = sum(b - a for a, b in branch.spans)
        x["ids"].append(branch.ids)
        x["id_lengths"].append(len(branch.ids))
        x["spans"] += branch.spans
        x["span_counts"].append(len(branch.spans))
        x["image_refs"] += [self.images.setdefault(i, len(self.images)) for i in branch.images]
        x["image_counts"].append(len(branch.images))
        x["scored_lengths"].append(n)
        x["has_changed"].append(branch.changed is not None)
        x["has_weights"].append(branch.weights is not None)
        x["changed"].append(np.zeros(n, np.uint8) if branch.changed is None else branch.changed.astype(np.uint8))
        x["weights"].append(np.ones(n, np.float32) if branch.weights is None else branch.weights)
        return number

    def arrays(self) -> dict[str, np.ndarray]:
        x = self.lists

        def joined(name: str, dtype: type) -> np.ndarray:
            return np.concatenate([np.zeros(0, dtype), *x[name]]).astype(dtype)

        return {
            "ids": joined("ids", np.int32),
            "changed": joined("changed", np.uint8),
            "weights": joined("weights", np.float32),
            "spans": np.asarray(x["spans"], np.int32).reshape(-1, 2),
            "has_changed": np.asarray(x["has_changed"], np.uint8),
            "has_weights": np.asarray(x["has_weights"], np.uint8),
            "example_weights": np.asarray(x["example_weights"], np.float64),
            **{k: np.asarray(x[k], np.int32) for k in ("image_refs", "files")},
            **{
                k: np.asarray(x[k], np.int64)
                for k in ("id_lengths", "span_counts", "image_counts", "scored_lengths", "chosen", "rejected")
            },
        }


class Unfit(Exception):
    """Parts that make no store together."""


def contents_of(parts: list[Path]) -> Contents:
    """What every image file was when the parts were built. Raises Unfit where one part saw another picture, or is
    damaged."""
    found: Contents = {}
    for part in parts:
        try:
            files = json.loads(map_arrays(part)[1]["content"])["files"]
            for (root, name), (content, stamp) in files:
                where = root, name
                if found.setdefault(where, (content, tuple(stamp)))[0] != content:
                    raise Unfit(f"{name} changed between parts")
        except (ValueError, LookupError, TypeError) as error:
            raise Unfit(str(error)) from None
    return found


def merge_parts(path: Path, parts: list[Path], manifest: dict[str, Any]) -> None:
    """Write a store into `path` from its parts, in order."""
    columns: dict[str, list[np.ndarray]] = {}
    images: dict[str, int] = {}
    infos: list[dict] = []
    names: list = []
    report = Report()
    branches = 0
    for part in parts:
        arrays, metadata = map_arrays(part)
        found = json.loads(metadata["content"])
        for info in found["images"]:
            if info["id"] not in images:
                images[info["id"]] = len(images)
                infos.append({k: v for k, v in info.items() if k != "source"})
        names += found["names"]
        report.merge(Report.from_dict(found["report"]))
        refs = np.asarray([images[i] for i in found["image_ids"]], np.int32)
        arrays["image_refs"] = refs[arrays["image_refs"]] if len(refs) else arrays["image_refs"]
        arrays["chosen"] = arrays["chosen"] + branches
        arrays["rejected"] = np.where(arrays["rejected"] < 0, -1, arrays["rejected"] + branches)
        branches += len(arrays["id_lengths"])
        for name, value in arrays.items():
            columns.setdefault(name, []).append(value)
    flat = {name: np.concatenate(values) for name, values in columns.items()}
    for lengths, name in (
        ("id_lengths", "id_offsets"),
        ("span_counts", "span_offsets"),
        ("image_counts", "image_offsets"),
        ("scored_lengths", "scored_offsets"),
    ):
        flat[name] = offsets_of(flat.pop(lengths))
    flat["image_tokens"] = np.asarray([i["tokens"] for i in infos], np.int32)
    files = sorted((*where, content, stamp[2]) for where, (content, stamp) in contents_of(parts).items())
    path.mkdir(exist_ok=True)
    save_arrays(path / "examples.safetensors", flat, {"image_ids": json.dumps(list(images))})
    own = ("images.json", {"images": infos, "files": files}), ("names.json", names), ("report.json", report.to_dict())
    for name, content in own:
        (path / name).write_text(json.dumps(content))
    written = {name: sha256_of(path / name) for name in ("examples.safetensors", *(name for name, _ in own))}
    pictures = digest_of(files)
    digest = hashlib.sha256(f"{manifest['key']}{pictures}".encode()).hexdigest()[:24]
    told = {**manifest, "images": pictures, "digest": digest, "own": written}
    (path / "manifest.json").write_text(json.dumps(told))
