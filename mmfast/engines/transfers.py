"""Between host and device without waiting: a decode step sends small tables and fetches the tokens that it drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def send(values: Any, device: torch.device) -> Tensor:
    """A list of whole numbers, or a tensor of the host, on the device. From pinned memory a copy waits for nobody."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetch(tensors: tuple[Tensor, ...]) -> Callable[[], tuple[list, ...]]:
    """Their values, once they are asked for: the copies begin now, and what is queued behind them is not waited for."""
    if tensors[0].device.type != "cuda":
        return lambda: tuple(tensor.tolist() for tensor in tensors)
    hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for host, tensor in zip(hosts, tensors, strict=True):
        host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensors[0].device))

    def values() -> tuple[list, ...]:
        copied.synchronize()
        return tuple(host.tolist() for host in hosts)

    return values
