"""Argument checks shared by the ops: a user's mistake raises before any work and names the argument."""

from __future__ import annotations

import os

import torch
from torch import Tensor

EXACT = (torch.float32, torch.float64)
FLOATS = (*EXACT, torch.bfloat16, torch.float16)
INDEX = (torch.int64,)
OFFSETS = (torch.int32, torch.int64)
CHECK_ENV = "MMFAST_CHECK"
Shape = tuple[str | int, ...]  # integers must match, letters stand for any size


def check(
    op: str, name: str, value: object, dtypes: tuple[torch.dtype, ...], shape: Shape, device: torch.device | None = None
) -> None:
    """Raises unless `value` is a plain tensor of one of `dtypes`, of this shape, on `device` (None: wherever it is)."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, not {type(value).__name__}")
    refuse_dtensor(op, name, value)
    if value.dtype not in dtypes:
        choices = " or ".join(short(d) for d in dtypes)
        raise ValueError(f"{op}: {name} must be {choices}, not {short(value.dtype)}")
    if not _fits(value, shape):
        letters = ",".join(str(s) for s in shape)
        raise ValueError(f"{op}: {name} must have shape [{letters}], not {list(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} is on {value.device}, but the other tensors are on {device}")


def _fits(value: Tensor, shape: Shape) -> bool:
    """A small preference_loss takes 25 us, its checks 5 of them: so no generator, and no shape unless needed."""
    if value.dim() != len(shape):
        return False
    for axis, size in enumerate(shape):  # noqa: SIM110
        if not isinstance(size, str) and size != value.shape[axis]:
            return False
    return True


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def refuse_dtensor(op: str, name: str, value: Tensor) -> None:
    if type(value) is Tensor or type(value) is torch.nn.Parameter or not torch.distributed.is_available():
        return
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        raise ValueError(
            f"{op}: {name} is a DTensor. Call the op inside the FSDP root's forward, where parameters are plain "
            "gathered tensors; outside it, full_tensor() detaches the gradient from the shards"
        )


def looks_at(value: Tensor) -> bool:
    """Indices are looked at on CPU always, elsewhere (where it costs a sync) with MMFAST_CHECK=1."""
    return not torch.compiler.is_compiling() and (value.device.type == "cpu" or os.environ.get(CHECK_ENV) == "1")


def check_range(op: str, name: str, value: Tensor, low: int, high: int) -> None:
    if value.numel() == 0 or not looks_at(value):
        return
    smallest, largest = (int(x) for x in torch.aminmax(value))
    if smallest < low or largest >= high:
        wrong = smallest if smallest < low else largest
        raise ValueError(f"{op}: {name} holds {wrong}, outside [{low}, {high})")


def check_offsets(op: str, name: str, value: Tensor, end: int) -> None:
    """Offsets start at 0, never fall and end at `end`."""
    if value.numel() == 0:
        raise ValueError(f"{op}: {name} needs at least one entry (a lone 0 where there is nothing)")
    if not looks_at(value):
        return
    if int(value[0]) != 0 or int(value[-1]) != end or bool((value[1:] < value[:-1]).any()):
        raise ValueError(f"{op}: {name} must start at 0, never fall and end at {end}; it is {value.tolist()[:16]}")


def refuse_double_backward(op: str) -> None:
    """Called by backward passes whose result, made outside autograd, would count as a constant: a gradient penalty
    would be silently dropped. Grad mode is on in an eager backward pass with create_graph=True only; a backward pass
    that AOTAutograd traces is left alone, it refuses double backward itself."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: its gradient cannot be differentiated again (create_graph=True). Take a penalty on gradients from "
            "plain torch operations"
        )
