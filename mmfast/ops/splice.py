"""splice_embeddings: image features and token embeddings laid into one stream, each row read once and written once.

    out[t] = image_features[features[t]]   where features[t] >= 0
           = table[tokens[t]]              elsewhere

Backward: d image_features is a gather in fixed order (a feature row that stands in several places gets the ordered
sum), d table a sorted segment sum over the text tokens; either is skipped when it needs no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import FLOATS, INDEX, check, check_range, looks_at
from .dispatch import BACKENDS, choose, native
from .launch import LeanOp, stream
from .rows import invert, segment_backend, segment_sum

OP = "splice_embeddings"


def splice_torch(tokens: Tensor, table: Tensor, image_features: Tensor, features: Tensor) -> Tensor:
    """The oracle: plain, differentiable torch."""
    text = features < 0
    out = table.index_select(0, torch.where(text, tokens, 0))
    if image_features.shape[0] == 0:
        return out
    return torch.where(text[:, None], out, image_features.index_select(0, features.clamp(min=0)))


def _forward(table: Tensor, tokens: Tensor, image_features: Tensor, features: Tensor, backend: str) -> list[Tensor]:
    if backend == "torch" or tokens.numel() == 0:
        return [splice_torch(tokens, table, image_features, features)]
    tokens, features = tokens.contiguous(), features.contiguous()
    table, image_features = table.contiguous(), image_features.contiguous()
    if backend == "triton":
        from mmfast.kernels.splice import splice

        return [splice(tokens, table, image_features, features)]
    out = table.new_empty((tokens.shape[0], table.shape[1]))
    given = (tokens, features, table, image_features, out, out.shape[0], table.shape[1] * table.element_size())
    if backend == "cuda":
        native().cuda_splice(*given, stream(table))
    else:
        native().cpu_splice(*given, table.shape[0], image_features.shape[0])
    return [out]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        table, tokens, image_features, features, _ = arguments
        ctx.save_for_backward(tokens, features)
        ctx.sizes = table.shape[0], image_features.shape[0]
        return tuple(_splice.below(*arguments))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (tokens, features), (vocabulary, rows), backend = ctx.saved_tensors, ctx.sizes, segment_backend(grad)
        d_table = d_images = None
        if ctx.needs_input_grad[0]:
            words = torch.where(features < 0, tokens, -1)  # -1 sorts before every row and is left out
            d_table = segment_sum(grad, *invert(words, vocabulary), backend)
        if ctx.needs_input_grad[2]:
            d_images = segment_sum(grad, *invert(features, rows), backend)
        return d_table, None, d_images, None, None


_splice = LeanOp(
    "splice_embeddings", _forward,
    lambda table, tokens, *_: [table.new_empty((tokens.shape[0], table.shape[1]))], _Gradient,
)  # fmt: skip


def splice_embeddings(
    tokens: Tensor, table: Tensor, image_features: Tensor, features: Tensor, *, backend: str | None = None
) -> Tensor:
    """Lays table [V, D] and image_features [F, D] (F may be 0) out by tokens and features int64[T] (-1 for text).

    The result [T, D] has the table's dtype; image features of another dtype are cast to it.
    """
    check(OP, "table", table, FLOATS, ("V", "D"))
    device = table.device
    check(OP, "tokens", tokens, INDEX, ("T",), device)
    check(OP, "image_features", image_features, FLOATS, ("F", table.shape[1]), device)
    check(OP, "features", features, INDEX, (tokens.shape[0],), device)
    if table.shape[0] == 0:
        raise ValueError(f"{OP}: table is empty, shape {list(table.shape)}")
    if image_features.dtype != table.dtype:
        image_features = image_features.to(table.dtype)
    name = choose(OP, device, dict.fromkeys(BACKENDS, ""), backend)
    if name != "cpu" and looks_at(tokens):  # the native kernel looks at every index in its own pass
        check_range(OP, "features", features, -1, image_features.shape[0])
        check_range(OP, "tokens", tokens.masked_fill(features >= 0, 0), 0, table.shape[0])
    out: Tensor = _splice(table, tokens, image_features, features, name)[0]
    return out
