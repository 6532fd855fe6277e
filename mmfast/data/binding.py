"""Which examples belong to the pictures that lie here.

Examples are made of a data file and of pictures, and pictures are found by name under a root: another root may hold
others. A place of the cache (`examples/<key>`, no path in its key) therefore holds

    <variant>/            a finished store for each set of pictures the data was built with, named by their digest
    bindings/<roots>      for each set of roots: which variant fits there, and inode, time and size of every file when
                          its content was compared
    building-<roots>/     the parts of an unfinished build
    lock                  held by whoever builds or compares; nobody else opens it

A start that finds its binding and the same inodes, times and sizes reads no picture and writes nothing. Otherwise the
contents are compared (only of files that changed, where there was a binding) and the outcome is remembered.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmfast.files import map_arrays, save_arrays, sha256_of
from mmfast.progress import Parts

Stamp = tuple[int, int, int]  # inode, time in ns, size
NO_FILE: Stamp = (-1, -1, -1)  # there is none, or none that can be read
Contents = dict[tuple[int, str], tuple[str, Stamp]]  # (root's number, name) -> (content id, stamp)
KEPT = -1  # the root of images that came inside rows: <cache>/images
THREADS = 16  # of a pass over files: enough to hide a network disk's latency


class Variant:
    """A finished store, and what each picture was that it was built from."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
            self.own = {str(name): str(digest) for name, digest in self.manifest["own"].items()}
            written = json.loads((path / "images.json").read_bytes())
            self.images: list[dict[str, Any]] = written["images"]
            # (number of the root, name, content id or "" where no file was, size)
            self.files = [(int(r), str(n), str(i), int(s)) for r, n, i, s in written["files"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(damaged(path, error)) from None

    def check_own(self) -> None:
        """The store's own files are what was written."""
        for name, digest in self.own.items():
            if content(str(self.path / name)) != digest:
                raise ValueError(damaged(self.path, f"{name} is not as it was written"))


def damaged(folder: Path, reason: object) -> str:
    reason = reason or "unreadable"
    return f"the examples in {folder} are damaged ({reason}): delete that folder, they are built again"


def digest_of(files: Iterable[Sequence[Any]]) -> str:
    """Names a set of pictures: (root's number, name, content id) of each."""
    return hashlib.sha256(json.dumps(sorted(f[:3] for f in files)).encode()).hexdigest()[:24]


def stamp_of(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return NO_FILE
    return _stamp(status) if stat.S_ISREG(status.st_mode) else NO_FILE


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino & (2**63 - 1), status.st_mtime_ns, status.st_size


def content(path: str) -> str:
    """sha256 of a file's bytes; "" where there is no file that can be read."""
    try:
        if not os.path.isfile(path):
            return ""
        return sha256_of(path)
    except (OSError, ValueError):
        return ""


def over(paths: Sequence[str], what: Callable[[str], Any], title: str = "") -> list[Any]:
    """`what` of each path, in several threads; with a bar where there is a title."""
    results: list[Any] = []
    with ThreadPoolExecutor(THREADS) as pool, Parts(Console(stderr=True), show=bool(title)) as bars:
        bar = bars.part(title)
        parts = [paths[k : k + 64] for k in range(0, len(paths), 64)]
        for part in pool.map(lambda some: [what(p) for p in some], parts):
            results += part
            bar(len(results), len(paths))
    return results


def stamps_of(paths: Sequence[str]) -> np.ndarray:
    return np.asarray(over(paths, stamp_of), np.int64).reshape(-1, 3)


class Place:
    """The stores of one data set with one set of settings, seen from one set of roots."""

    def __init__(self, cache: Path, name: str, roots: Sequence[str | Path]):
        given = [str(Path(root).absolute()) for root in roots]  # as written: ".." after a link is elsewhere
        self.roots = [*given, str((cache / "images").absolute())]
        self.folder = cache / "examples" / name
        mark = hashlib.sha256(json.dumps(given).encode()).hexdigest()[:24]
        self.note = self.folder / "bindings" / f"{mark}.safetensors"
        self.building = self.folder / f"building-{mark}"
        self.seen: Contents = {}  # what was compared in this process

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Raises OSError where the cache cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def bound(self) -> Variant | None:
        """The store of these roots, if the binding says which and no file has changed since. Writes nothing."""
        bound = self._binding()
        if bound is None or not np.array_equal(bound[1], stamps_of(self._paths(bound[0]))):
            return None
        return bound[0]

    def bind(self, progress: bool, *, remember: bool = True) -> Variant | None:
        """The store of these roots by the contents of all pictures; None if no store here was built from these."""
        self._recall()
        for variant in self.variants():
            paths = self._paths(variant)
            stamps = stamps_of(paths)
            own, n = stamps[len(variant.files) :], len(variant.files)
            sizes = np.asarray([size for *_, size in variant.files], np.int64)
            if ((sizes >= 0) & (sizes != stamps[:n, 2])).any():
                continue  # another picture, or none
            new = [k for k, (root, name, *_) in enumerate(variant.files) if (root, name) not in self.seen]
            title = "comparing images" if progress and new else ""
            for k, digest in zip(new, over([paths[k] for k in new], content, title), strict=True):
                root, name, *_ = variant.files[k]
                self.seen[root, name] = digest, tuple(stamps[k].tolist()) if digest else NO_FILE
            if all(self.seen[root, name][0] == digest for root, name, digest, _ in variant.files):
                variant.check_own()
                if remember:
                    self.remember(variant, self.seen, own)
                return variant
        return None

    def remember(self, variant: Variant, contents: Contents, own: np.ndarray) -> None:
        """All stamps were taken before the contents were read, so what changes meanwhile is noticed next time."""
        pictures = np.asarray([contents[root, name][1] for root, name, *_ in variant.files], np.int64).reshape(-1, 3)
        self.note.parent.mkdir(exist_ok=True)
        for left in self.note.parent.glob("*.tmp"):  # of a start that was killed; the lock is ours
            left.unlink()
        metadata = {"variant": variant.path.name, "roots": json.dumps(self.roots)}
        save_arrays(self.note, {"stamps": np.concatenate([pictures, own])}, metadata)
        shutil.rmtree(self.building, ignore_errors=True)

    def adopt(self, folder: Path, contents: Contents) -> Variant:
        """A store that was just built, in `folder` and from `contents`, becomes a variant and is bound."""
        path = self.folder / digest_of((*where, digest) for where, (digest, _) in contents.items())
        if not path.exists():
            folder.rename(path)
        variant = Variant(path)
        own = stamps_of([str(path / name) for name in variant.own])
        variant.check_own()
        self.remember(variant, contents, own)
        return variant

    def unchanged(self, contents: Contents) -> bool:
        """Do all files still hold what was read of them?"""
        places = list(contents)
        now = stamps_of([self.path_of(*where) for where in places])
        before = np.asarray([stamp for _, stamp in contents.values()], np.int64).reshape(-1, 3)
        moved = [places[k] for k in np.flatnonzero((now != before).any(1))]
        return all(content(self.path_of(*where)) == contents[where][0] for where in moved)

    def variants(self) -> list[Variant]:
        names = sorted(p.name for p in self.folder.iterdir()) if self.folder.is_dir() else []
        return [Variant(self.folder / name) for name in names if re.fullmatch("[0-9a-f]{24}", name)]

    def nearest(self) -> Variant | None:
        """The store here that has most of the pictures that were compared."""

        def shared(variant: Variant) -> int:
            return sum(self.seen.get((r, name), ("?",))[0] == digest for r, name, digest, _ in variant.files)

        return max(self.variants(), key=shared, default=None)

    def path_of(self, root: int, name: str) -> str:
        return os.path.join(self.roots[root], name)

    def _paths(self, variant: Variant) -> list[str]:
        pictures = [self.path_of(root, name) for root, name, *_ in variant.files]
        return pictures + [str(variant.path / name) for name in variant.own]

    def _binding(self) -> tuple[Variant, np.ndarray] | None:
        try:
            arrays, metadata = map_arrays(self.note)
            return Variant(self.folder / Path(metadata["variant"]).name), np.asarray(arrays["stamps"])
        except (OSError, ValueError, LookupError):
            return None  # none, or not one of ours: contents are compared again

    def _recall(self) -> None:
        """Contents that an outdated binding still tells: those of files that did not change since."""
        bound = self._binding()
        if bound is None or len(bound[1]) != len(bound[0].files) + len(bound[0].own):
            return
        variant, stamps = bound
        n = len(variant.files)
        same = (stamps[:n] == stamps_of(self._paths(variant)[:n])).all(1) & (stamps[:n, 2] >= 0)
        for k in np.flatnonzero(same):
            root, name, known, _ = variant.files[k]
            self.seen[root, name] = known, tuple(stamps[k].tolist())
