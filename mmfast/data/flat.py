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
    """The arrays as read-only views of the file, and its metadata."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
    metadata = header.pop("__metadata__", {})
    content = (
        np.memmap(path, np.uint8, "r", offset=8 + size)
        if any(v["data_offsets"][1] for v in header.values())
        else np.zeros(0, np.uint8)
    )
    arrays = {}
    for name, value in header.items():
        first, end = value["data_offsets"]
        arrays[name] = content[first:end].view(DTYPES[value["dtype"]]).reshape(value["shape"])
    return arrays, metadata


def offsets_of(lengths: list[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
