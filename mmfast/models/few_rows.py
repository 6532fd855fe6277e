"""The decoder's last layer for the rows alone whose states are read.

Whoever reads a few rows of a pack (labels, the first tokens of answers, log-probs) needs keys and values of all of them
and the rest of the last layer of these few: most of its work is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def only(layer: Any, rows: Tensor) -> Iterator[None]:
    """`rows`: int64, distinct; the states of all others are of no use behind this layer. Without gradients."""
    hooks, attention = [], getattr(layer, "self_attn", None)
    # A family that names its parts otherwise runs them whole
    for part in (*(getattr(attention, name, None) for name in ("q_proj", "o_proj")), getattr(layer, "mlp", None)):
        if isinstance(part, nn.Module):
            length: list[int] = []

            def take(module: Any, given: tuple[Any, ...], length: list[int] = length) -> tuple[Any, ...]:
                length[:] = [given[0].shape[-2]]
                return (given[0].index_select(-2, rows), *given[1:])

            def put(module: Any, given: Any, found: Tensor, length: list[int] = length) -> Tensor:
                whole = found.new_zeros(*found.shape[:-2], length[0], found.shape[-1])
                return whole.index_copy_(-2, rows, found)

            hooks += [part.register_forward_pre_hook(take), part.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
