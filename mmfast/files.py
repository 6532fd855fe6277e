"""Flat arrays in one safetensors file: written once, memory-mapped by every reader."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DTYPES = {"BOOL": np.bool_, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64}


def save_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata)
    os.replace(temporary, path)


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
