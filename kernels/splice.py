"""splice_embeddings: rows copied once from one of two tables, and the segment sum of its backward.

The same kernels as in csrc/cuda/splice.cu.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def splice_kernel(tokens, features, table, images, out, width, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    f = tl.load(features + t)
    if f >= 0:
        row = tl.load(images + f * width + columns, mask=inside)
    else:
        row = tl.load(table + tl.load(tokens + t) * width + columns, mask=inside)
    tl.store(out + t * width + columns, row, mask=inside)


@triton.jit
def segment_sum_kernel(values, order, offsets, out, width, BLOCK: tl.constexpr, DOUBLE: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros([BLOCK], tl.float64 if DOUBLE else tl.float32)
    for i in range(tl.load(offsets + s), tl.load(offsets + s + 1)):
        row = tl.load(order + i)
        total += tl.load(values + row * width + columns, mask=inside, other=0.0).to(total.dtype)
    tl.store(out + s * width + columns, total.to(out.dtype.element_ty), mask=inside)


def splice(tokens: Tensor, table: Tensor, images: Tensor, features: Tensor) -> Tensor:
    """out[t] = features[t] >= 0 ? images[features[t]] : table[tokens[t]]; everything contiguous."""
    width = table.shape[1]
    out = table.new_empty(tokens.shape[0], width)
    if out.numel():
        block = min(triton.next_power_of_2(width), 2048)
        grid = (tokens.shape[0], triton.cdiv(width, block))
        splice_kernel[grid](tokens, features, table, images, out, width, BLOCK=block, num_warps=4)
    return out


def segment_sum(values: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """out[s] = sum of values[order[i]] over i in [offsets[s], offsets[s+1]), in that order."""
    segments, width = offsets.shape[0] - 1, values.shape[1]
    out = values.new_empty(segments, width)
    if out.numel():
        block = min(triton.next_power_of_2(width), 1024)
        grid = (segments, triton.cdiv(width, block))
        segment_sum_kernel[grid](
            values, order, offsets, out, width, BLOCK=block, DOUBLE=values.dtype == torch.float64, num_warps=4
        )
    return out
