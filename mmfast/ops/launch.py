"""Where kernels are launched: on the GPU that holds their tensors, whichever one is current.

A model spread over several GPUs (device_map) calls the ops with the last one's tensors while the first is current. A
CUDA stream belongs to one device and Triton launches on the current one, so every body that launches is wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_HERE: AbstractContextManager[Any] = nullcontext()
Body = TypeVar("Body", bound=Callable[..., Any])


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one; nothing for a tensor elsewhere."""
    return torch.cuda.device(tensor.device.index) if tensor.is_cuda else _HERE


def stream(tensor: Tensor) -> int:
    """Returns the address of the current stream of the tensor's GPU; 0 on the host, where tests emulate kernels. (As
    Triton asks for it: torch.cuda.current_stream makes an object first, in every launch.)"""
    return torch._C._cuda_getCurrentRawStream(tensor.device.index) if tensor.is_cuda else 0


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


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Keeps autocast out of a body that has its own dtypes; making the guard alone takes longer than asking."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _HERE


_OPS = torch.library.Library("mmfast", "FRAGMENT")


class LeanOp:
    """An op whose body runs on its tensors' device, as those of custom_op do, at a third of the host time a call: in an
    eager call nothing stands between caller and body, and tracers, fake tensors and modes see an op of the dispatcher.
    It returns a list of tensors, none of them an argument, or nothing where it `writes` one. The schema is the body's.
    `gradient`: a torch.autograd.Function of the same arguments, which calls `below`."""

    def __init__(
        self, name: str, body: Callable[..., Any], fake: Callable[..., Any], gradient: Any = None, writes: Any = ()
    ) -> None:
        self.body, self.gradient = on_its_device(body), gradient
        schema = torch.library.infer_schema(body, mutates_args=writes)
        _OPS.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _OPS.impl(name, self.body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"mmfast::{name}", fake, lib=_OPS)
        self.op = getattr(torch.ops.mmfast, name).default
        if gradient is not None:
            _OPS.impl(name, self._differentiable, "Autograd")

    def __call__(self, *arguments: Any) -> Any:
        if not _is_eager(arguments[0]):
            return self.op(*arguments)
        graded = self.gradient is not None and torch.is_grad_enabled()
        return list(self.gradient.apply(*arguments)) if graded else self.body(*arguments)

    def _differentiable(self, *arguments: Any) -> Any:
        return list(self.gradient.apply(*arguments)) if torch.is_grad_enabled() else self.below(*arguments)

    def below(self, *arguments: Any) -> Any:
        """The op without its gradient."""
        if _is_eager(arguments[0]):
            return self.body(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*arguments)


def _is_eager(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch.autograd._profiler_enabled()
    return plain and not traced
