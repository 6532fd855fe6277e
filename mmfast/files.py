"""Files that appear whole or not at all; their digests; flat arrays in one file, memory-mapped by every reader."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save_file

from mmfast.directory.native import note_of

DTYPES = {"BOOL": np.bool_, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64}

T = TypeVar("T")


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives the name to write to. At the end it becomes `path`, which until then was absent or the old one; where the
    writing raised, it goes. Several may write one path. `durable`: a crash of the machine does not undo it either."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    with whole(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """The file holds the whole text or what it held before, and is on disk when this returns."""
    write_bytes(path, text.encode(), durable=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


def sync_folder(path: Path) -> None:
    """What was renamed in a folder is on disk when this returns."""
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weight_digests(folder: Path, remembered: Path | None = None) -> dict[str, str]:
    """sha256 (shortened) of dtype, shape and bytes of each tensor of a folder's safetensors files; of a folder that
    notes where its weights lie (directory/native.py), the files' own. `remembered`: a folder where they are kept under
    a file's path, size and times, so that a next start need not read it."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if (native := note_of(Path(folder))) is not None:  # of each file: .bin files name no tensor without being opened
        folders = [native["adapter"]] if "adapter" in native else []
        more = [str(p) for f in folders for p in sorted(Path(f).iterdir()) if p.suffix in (".bin", ".safetensors")]
        listed = [*native["files"], *native.get("tower", ()), *more]
        return {f"{n}/{Path(f).name}": file_digest(Path(f), remembered) for n, f in enumerate(listed)}
    if not files:
        raise ValueError(f"{folder} holds no safetensors file: weights are read from safetensors only")
    return {
        name: digest for file in files for name, digest in _noted(file, remembered, "weights", _tensor_digests).items()
    }


def file_digest(path: Path, remembered: Path | None = None) -> str:
    """sha256 of a file's bytes, `remembered` as above."""
    return _noted(path, remembered, "file", sha256_of)


def _noted(file: Path, folder: Path | None, kind: str, read: Callable[[Path], T]) -> T:
    """What `read` tells of a file, from the note in `folder` where there is one."""
    if folder is None:
        return read(file)
    note = folder / f"{kind}-{_stamp(file)}.json"
    with suppress(OSError, ValueError):
        noted: T = json.loads(note.read_text())
        digests = list(noted.values()) if isinstance(noted, dict) else [noted]
        if digests and all(isinstance(d, str) and re.fullmatch("[0-9a-f]{24}|[0-9a-f]{64}", d) for d in digests):
            return noted  # else it is damaged, or not one of ours
    answer = read(file)
    if note.name == f"{kind}-{_stamp(file)}.json":  # it was not written meanwhile
        with suppress(OSError):  # a cache that cannot be written costs time only
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(note, json.dumps(answer).encode())
    return answer


def _stamp(file: Path) -> str:
    status = file.stat()
    text = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _tensor_digests(file: Path) -> dict[str, str]:
    with file.open("rb") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(size))
        data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)

    def one(item: tuple[str, Any]) -> tuple[str, str]:
        name, tensor = item
        begin, end = tensor["data_offsets"]
        digest = hashlib.sha256(f"{tensor['dtype']}{tensor['shape']}".encode())
        digest.update(memoryview(data)[8 + size + begin : 8 + size + end])
        return name, digest.hexdigest()[:24]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(pool.map(one, header.items()))


def save_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    with whole(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata)


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays as read-only views of the file, and its metadata. ValueError where it is no such file or not whole."""
    try:
        return _mapped(path)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no file of arrays ({error})") from None


def _mapped(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with open(path, "rb") as f:
        whole = os.fstat(f.fileno()).st_size
        size = int.from_bytes(f.read(8), "little")
        if not 2 <= size <= whole - 8:
            raise ValueError("its header is longer than the file")
        header = json.loads(f.read(size))
    metadata = header.pop("__metadata__", {})
    last = max((v["data_offsets"][1] for v in header.values()), default=0)
    if last != whole - 8 - size:
        raise ValueError(f"{whole - 8 - size} bytes of arrays where {last} are announced")
    content = np.memmap(path, np.uint8, "r", offset=8 + size) if last else np.zeros(0, np.uint8)
    arrays = {}
    for name, value in header.items():
        first, end = value["data_offsets"]
        arrays[name] = content[first:end].view(DTYPES[value["dtype"]]).reshape(value["shape"])
    return arrays, metadata


def offsets_of(lengths: list[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
