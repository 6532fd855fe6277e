"""kernels/decode.py's attention in plain torch on the host, from the same tables: keys are read at their addresses."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from mmfast.kernels.decode import HEAD, SPAN


def memory(address: int, count: int, dtype: torch.dtype) -> Tensor:
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, anchor: Tensor, keys: Tensor, values: Tensor, pieces: Tensor,
    begin: Tensor, ordinals: Tensor, place: Tensor, stride: int, parts: int, *, scale: float, window: int | None = None,
) -> Tensor:  # fmt: skip
    rows, heads, size = query.shape
    groups, item, zero = key.shape[1], query.dtype.itemsize, anchor.data_ptr()
    for r in range(rows):
        for h in range(groups):
            for base, new in ((keys, key), (values, value)):
                memory(zero + (int(base[0]) + int(place[r]) + h * stride) * item, size, query.dtype)[:] = new[r, h]
    # Each row's keys and values, gathered part by part
    found: dict[int, tuple[int, list[tuple[Tensor, Tensor, Tensor]]]] = {}
    for line in pieces.tolist():
        stack, at, head, count, first = line[:HEAD]
        if not count:
            continue
        some = [
            torch.stack([
                memory(zero + (int(base[stack]) + at + h * head) * item, count * size, query.dtype).view(count, size)
                for h in range(groups)
            ])
            for base in (keys, values)
        ]  # fmt: skip
        for row, part in zip(line[HEAD : HEAD + SPAN], line[HEAD + SPAN :], strict=True):
            if row >= 0:
                assert int(begin[row]) <= part < int(begin[row + 1]) <= parts and part not in found
                found[part] = (row, [(some[0], some[1], first + torch.arange(count))])
    assert sorted(found) == list(range(int(begin[rows])))
    out = torch.zeros_like(query)
    for r in range(rows):
        mine = [one for part in range(int(begin[r]), int(begin[r + 1])) for one in found[part][1]]
        if not mine:
            continue
        k, v, at = (torch.cat([one[n] for one in mine], dim=-2 if n < 2 else 0) for n in range(3))
        scores = torch.einsum("gjd,gtd->gjt", query[r].view(groups, heads // groups, size).double(), k.double())
        behind = int(ordinals[r]) - at
        scores = (scores * scale).masked_fill(behind >= (math.inf if window is None else window), -math.inf)
        out[r] = (scores.softmax(-1) @ v.double()).reshape(heads, size).to(query.dtype)
    return out
