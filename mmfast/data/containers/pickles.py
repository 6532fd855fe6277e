"""Pickles from elsewhere, read without running anything in them: plain values and numpy arrays, no other class.

Tensors inside a plain pickle can only be rebuilt by calling torch's own reducers on bytes that torch.load would have
to trust, so they are refused with the way out; a file written by torch.save goes through its weights-only load.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

# Callables that build plain data. Each is harmless with any arguments.
SAFE = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("builtins", "range"): range,
    ("collections", "OrderedDict"): __import__("collections").OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def _plain_dtype(*args: Any) -> np.dtype:
    dtype = np.dtype(*args)
    if dtype.hasobject:
        raise pickle.UnpicklingError("a numpy array of Python objects is refused")
    return dtype


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype=_plain_dtype(dtype), count=1)[0]


def _numpy_frombuffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(buffer, dtype=_plain_dtype(dtype)).reshape(shape, order=order)


def _numpy_reconstruct(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("only plain numpy arrays are read")
    return np.ndarray.__new__(np.ndarray, shape, dtype)


SAFE[("_codecs", "encode")] = _latin1  # how old protocols write bytes
SAFE[("numpy", "dtype")] = _plain_dtype
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    SAFE[(_module, "scalar")] = _numpy_scalar
    SAFE[(_module, "_reconstruct")] = _numpy_reconstruct
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    SAFE[(_module, "_frombuffer")] = _numpy_frombuffer


class RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # protocol 2 speaks Python 2
        if (module, name) in SAFE:
            return SAFE[module, name]
        if module.split(".")[0] == "torch":
            raise pickle.UnpicklingError(
                f"it holds a torch tensor ({module}.{name}), which a plain pickle can only rebuild by running code; "
                "write it again with torch.save (read back weights-only), or as lists or numpy arrays"
            )
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data; nothing in it was run")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside itself")


def load_pickle_bytes(data: bytes) -> Any:
    return RestrictedUnpickler(io.BytesIO(data)).load()


def load_pickle(file: str | Path) -> Any:
    file = Path(file)
    if zipfile.is_zipfile(file):  # torch.save
        import torch

        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{file.name} is refused by torch's weights-only load: {error}") from None
    try:
        with open(file, "rb") as f:
            return RestrictedUnpickler(f).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, ImportError) as error:
        raise ValueError(f"{file.name} is refused by the restricted unpickler: {error}") from None
