"""Copies of a run's tensors in host memory, for a checkpoint that is written while training goes on.

The DefaultStager of torch 2.11 forgets after its first use how a dict is copied, and none copies torchao's states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Staging:
    """`staging(state)` -> the state in host memory. Its buffers (pinned, where they are copied to from a GPU) are kept:
    the next call writes over them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        staged = {
            part: {name: self._copy((part, name), t.detach()) for name, t in of.items()} for part, of in state.items()
        }
        for device in {t.device for of in state.values() for t in of.values() if t.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # until then the copies are under way
        return staged

    def _copy(self, key: tuple[str, ...], t: Any) -> Any:
        if isinstance(t, DTensor):  # from_local would take the copy back to the GPU
            return DTensor(self._copy(key, t.to_local()), t._spec, requires_grad=False)
        if type(t) not in (Tensor, nn.Parameter):  # an 8-bit state: one tensor made of several
            inner, context = t.__tensor_flatten__()
            copies = {name: self._copy((*key, name), getattr(t, name)) for name in inner}
            return type(t).__tensor_unflatten__(copies, context, t.shape, t.stride())
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != t.shape or buffer.dtype != t.dtype:
            buffer = torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
            self.buffers[key] = buffer
        return buffer.copy_(t.detach(), non_blocking=True)
