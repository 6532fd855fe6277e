"""Argument checks of the head ops, beside those of arguments.py: shapes by letters, one dtype, autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast.ops.arguments import refuse_dtensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(
    op: str, name: str, t: object, shape: tuple[str | int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS
) -> Tensor:
    """`shape` holds integers, which must match, and letters, which stand for any size."""
    if not isinstance(t, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
    refuse_dtensor(op, name, t)
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


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype autocast asks for on this device, or None outside autocast."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)
