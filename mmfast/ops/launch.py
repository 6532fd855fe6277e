"""Where kernels are launched: on the GPU that holds their tensors, whichever one is current.

A model spread over several GPUs (device_map) calls the ops with the last one's tensors while the first is current. A
CUDA stream belongs to one device and Triton launches on the current one, so every body that launches is wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_HERE: AbstractContextManager[Any] = nullcontext()
Body = TypeVar("Body", bound=Callable[..., Any])


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one; nothing for a tensor elsewhere."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else _HERE


def stream(tensor: Tensor) -> int:
    """Returns the address of the current stream of the tensor's GPU; 0 on the host, where tests emulate kernels."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def address(tensor: Tensor | None) -> int:
    """Native code takes a tensor by this number; 0 stands for "absent"."""
    return 0 if tensor is None else tensor.data_ptr()


def row_stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def on_its_device(body: Body) -> Body:
    """`body`, whose first argument that is not None is a tensor, with that tensor's GPU as the current one. (All
    tensors of an op are on one device.) It costs a call on CPU less than a microsecond."""

    @wraps(body)
    def guarded(*args: Any) -> Any:
        for tensor in args:
            if tensor is not None:
                break
        with device_of(tensor):
            return body(*args)

    return guarded  # type: ignore[return-value]


def custom_op(name: str, mutates_args: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Defines a torch.library.custom_op whose body runs on its tensors' device."""

    def define(body: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(body, mutates_args=mutates_args)
        return torch.library.custom_op(name, on_its_device(body), mutates_args=mutates_args, schema=schema)

    return define
