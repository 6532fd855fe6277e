"""Argument checks shared by the ops: each error names the argument and what would be right."""

from __future__ import annotations

import os

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(
    op: str, name: str, t: object, shape: tuple[str | int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS
) -> Tensor:
    """`shape` holds integers, which must match, and letters, which stand for any size."""
    if not isinstance(t, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
    if t.__class__.__name__ == "DTensor":
        raise ValueError(
            f"{op}: {name} is a DTensor. Its local shard is not the whole matrix, and full_tensor() outside the "
            "FSDP root gives a silently wrong gradient: call the op inside the root module's forward, where parameters "
            "are gathered"
        )
    if t.dim() != len(shape) or any(not isinstance(s, str) and s != n for s, n in zip(shape, t.shape, strict=True)):
        want = "[" + ",".join(str(s) for s in shape) + "]"
        raise ValueError(f"{op}: {name} must have shape {want}, got {list(t.shape)}")
    if t.dtype not in dtypes:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(str, dtypes))}, got {t.dtype}")
    return t


def check_same(op: str, name: str, t: Tensor, first: str, reference: Tensor, dtype: bool = True) -> None:
    """`t` must be on the device (and of the dtype) of the argument called `first`."""
    if t.device != reference.device:
        raise ValueError(f"{op}: {name} is on {t.device}, but {first} is on {reference.device}")
    if dtype and t.dtype != reference.dtype:
        raise ValueError(f"{op}: {name} is {t.dtype}, but {first} is {reference.dtype}: cast one of them")


def check_range(op: str, name: str, index: Tensor, limit: int) -> None:
    """Index ranges: always on CPU; elsewhere with MMFAST_CHECK=1 (it waits for the device)."""
    if index.numel() == 0 or (index.device.type != "cpu" and os.environ.get("MMFAST_CHECK") != "1"):
        return
    low, high = (int(v) for v in index.aminmax())
    if low < 0 or high >= limit:
        raise ValueError(f"{op}: {name} holds {low if low < 0 else high}, outside 0..{limit - 1}")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype autocast asks for on this device, or None outside autocast."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)
