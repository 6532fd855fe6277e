"""changed_segments: the tokens by which two answers differ, for segment weights (DDPO).

The matcher is Python's difflib.SequenceMatcher to the bit. Matching blocks shorter than min_match are dropped, so that
changes lying close together become one. What lies between the kept blocks is changed:

    insertions="ignore"   only where both sides have tokens there (substitutions; RLHF-V's rule)
              "own"       tokens that only one side has are marked on that side too
              "both"      and the other side marks the token after the gap (at the end: before it)

With autojunk=True and min_match=3 over whole shifted sequences this is RLHF-V's release; the defaults are the clean
form, over response tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from .dispatch import native

OP = "changed_segments"
INSERTIONS = ("ignore", "own", "both")


def _ids(name: str, value: Sequence[int] | np.ndarray) -> np.ndarray:
    ids = np.asarray(value)
    if ids.size == 0:
        ids = ids.astype(np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{OP}: {name} must be a flat list of integers, not {ids.dtype} of shape {ids.shape}")
    if ids.dtype != np.int32 and ids.size and (ids.max() > 2**31 - 1 or ids.min() < -(2**31)):
        raise ValueError(f"{OP}: {name} holds an id outside int32")
    return np.require(ids, np.int32, ["C", "A"])  # dense and aligned: the kernel takes its address


def changed_flags(
    rejected: Sequence[int] | np.ndarray, chosen: Sequence[int] | np.ndarray, *, min_match: int = 3,
    autojunk: bool = False, insertions: str = "ignore", backend: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns booleans, one a token: (rejected, chosen)."""
    a, b = _ids("rejected", rejected), _ids("chosen", chosen)
    if min_match < 1:
        raise ValueError(f"{OP}: min_match must be at least 1, not {min_match}")
    if insertions not in INSERTIONS:
        raise ValueError(f"{OP}: insertions must be one of {', '.join(INSERTIONS)}, not {insertions!r}")
    if backend not in (None, "cpu", "python"):
        raise ValueError(f"{OP}: backend must be 'cpu' or 'python', not {backend!r}")
    module = native()
    if backend == "python" or (module is None and backend is None):
        return _difflib(a, b, min_match, autojunk, insertions)
    if module is None:
        raise ValueError(f"{OP}: backend 'cpu' cannot be used: mmfast._C was not built")
    flags = np.empty(len(a), dtype=np.bool_), np.empty(len(b), dtype=np.bool_)
    module.changed_segments(
        a.ctypes.data, len(a), b.ctypes.data, len(b), min_match, autojunk, INSERTIONS.index(insertions),
        flags[0].ctypes.data, flags[1].ctypes.data,
    )  # fmt: skip
    return flags


def changed_segments(
    rejected: Sequence[int] | np.ndarray, chosen: Sequence[int] | np.ndarray, *, min_match: int = 3,
    autojunk: bool = False, insertions: str = "ignore", backend: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the indices of the changed tokens in rejected and in chosen, ascending."""
    flags = changed_flags(
        rejected, chosen, min_match=min_match, autojunk=autojunk, insertions=insertions, backend=backend
    )
    return np.flatnonzero(flags[0]), np.flatnonzero(flags[1])


def _difflib(
    a: np.ndarray, b: np.ndarray, min_match: int, autojunk: bool, insertions: str
) -> tuple[np.ndarray, np.ndarray]:
    """The oracle, and the fallback where the extension was not built."""
    blocks = SequenceMatcher(None, a.tolist(), b.tolist(), autojunk=autojunk).get_matching_blocks()
    flags = np.zeros(len(a), dtype=np.bool_), np.zeros(len(b), dtype=np.bool_)
    start = [0, 0]
    for block in blocks:
        if block.size < min_match and block is not blocks[-1]:
            continue
        stop = [block.a, block.b]
        gaps = [stop[i] > start[i] for i in range(2)]
        for i in range(2):
            if all(gaps) or insertions != "ignore":
                flags[i][start[i] : stop[i]] = True
            if insertions == "both" and gaps[1 - i] and not gaps[i] and len(flags[i]):
                flags[i][min(stop[i], len(flags[i]) - 1)] = True
        start = [block.a + block.size, block.b + block.size]
    return flags
