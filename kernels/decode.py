"""Attention of a decode step over pieces: up to TILE keys that up to SPAN rows look at, wherever in memory they lie.

Rows of answers that begin alike see the same keys: a piece's keys are read once for all its rows. Everything that
changes from step to step stands in tensors of int64, places in memory too, so that a captured launch can be replayed:

    pieces [I, WIDTH]: stack, elements from its start to the first key of its first head, elements from a head to the
        next, keys (0: nothing to do), the first key's place on its path, SPAN rows (-1: none), SPAN parts
    keys, values [stacks]: where this layer's begin, in elements from `anchor`: a pointer that the launch brings is
        known to be aligned, one that is loaded is not
    begin [R+1]: each row's parts, by number
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # keys
SPAN = 8  # rows
HEAD = 5  # numbers before the rows
WIDTH = HEAD + 2 * SPAN
PARTS = 16  # put together at once


@triton.jit
def write_kernel(
    key,
    value,
    anchor,
    keys,
    values,
    place,
    stride,
    heads,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A row's new key and value join its page, of the stack that comes first."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    at = tl.multiple_of(tl.load(place + row) + head.to(tl.int64) * stride, ALIGNED)
    to_keys = anchor + tl.multiple_of(tl.load(keys), ALIGNED)
    to_values = anchor + tl.multiple_of(tl.load(values), ALIGNED)
    own = (row * heads + head) * SIZE + d
    tl.store(to_keys + at + d, tl.load(key + own, mask=d < SIZE), mask=d < SIZE)
    tl.store(to_values + at + d, tl.load(value + own, mask=d < SIZE), mask=d < SIZE)


@triton.jit
def pieces_kernel(
    query, anchor, keys, values, pieces, ordinals, top, total, out, heads, scale, window,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr,
    TILE: tl.constexpr, SPAN: tl.constexpr, HEAD: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Of each row of a piece and each query head over one head of keys: the largest score, the sum of the weights, and
    the weighted values, at the part's number."""
    line = pieces + tl.program_id(0).to(tl.int64) * (HEAD + 2 * SPAN)
    head = tl.program_id(1)
    count = tl.load(line + 3)
    if count > 0:
        # Where its keys lie, and whose they are
        stack = tl.load(line)
        at = tl.multiple_of(tl.load(line + 1), ALIGNED) + head * tl.multiple_of(tl.load(line + 2), ALIGNED)
        from_keys = anchor + tl.multiple_of(tl.load(keys + stack), ALIGNED) + at
        from_values = anchor + tl.multiple_of(tl.load(values + stack), ALIGNED) + at
        lane = tl.arange(0, LANES)
        slot = lane // GROUP
        row = tl.load(line + HEAD + slot, mask=slot < SPAN, other=-1)
        live = row >= 0
        row = tl.maximum(row, 0)
        part = tl.load(line + HEAD + SPAN + slot, mask=live, other=0)
        number = head * GROUP + lane % GROUP
        t = tl.arange(0, TILE)
        d = tl.arange(0, BLOCK)
        # Scores
        q = tl.load(query + ((row * heads + number) * SIZE)[:, None] + d[None, :],
                    mask=live[:, None] & (d < SIZE)[None, :], other=0.0)  # fmt: skip
        inside = (t < count)[:, None] & (d < SIZE)[None, :]
        k = tl.load(from_keys + t[:, None] * SIZE + d[None, :], mask=inside, other=0.0)
        v = tl.load(from_values + t[:, None] * SIZE + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        behind = tl.load(ordinals + row)[:, None] - (tl.load(line + 4) + t)[None, :]
        seen = (t < count)[None, :] & (behind < window)
        scores = tl.where(seen, scores, -1e30)  # finite: a part without a visible key is not NaN
        # The part's softmax
        best = tl.max(scores, 1)
        weights = tl.exp(scores - best[:, None])
        weighted = tl.dot(weights.to(v.dtype), v, input_precision="tf32x3")
        to = part * heads + number
        tl.store(top + to, best, mask=live)
        tl.store(total + to, tl.sum(weights, 1), mask=live)
        tl.store(out + to[:, None] * SIZE + d[None, :], weighted, mask=live[:, None] & (d < SIZE)[None, :])


@triton.jit
def parts_kernel(begin, top, total, out, result, heads, SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """One softmax over the parts of a row's path, in one order. A row without parts is zero."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    first = tl.load(begin + row)
    last = tl.load(begin + row + 1)
    best = tl.full([], -2e30, tl.float32)
    weight = tl.full([], 0.0, tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, PARTS):
        part = start + tl.arange(0, PARTS)
        live = part < last
        to = part * heads + head
        tops = tl.load(top + to, mask=live, other=-2e30)
        higher = tl.maximum(best, tl.max(tops, 0))
        share = tl.where(live, tl.exp(tops - higher), 0.0)
        before = tl.exp(best - higher)
        some = tl.load(out + to[:, None] * SIZE + d[None, :], mask=live[:, None] & (d < SIZE)[None, :], other=0.0)
        weight = weight * before + tl.sum(share * tl.load(total + to, mask=live, other=0.0), 0)
        sums = sums * before + tl.sum(share[:, None] * some, 0)
        best = higher
    value = sums / tl.where(weight > 0.0, weight, 1.0)
    tl.store(result + (row * heads + head) * SIZE + d, value.to(result.dtype.element_ty), mask=d < SIZE)


def attend(
    query: Tensor,  # [R,Hq,Dh], as key and value contiguous
    key: Tensor,  # [R,Hkv,Dh]
    value: Tensor,
    anchor: Tensor,  # of their dtype
    keys: Tensor,  # int64[stacks]
    values: Tensor,
    pieces: Tensor,
    begin: Tensor,
    ordinals: Tensor,  # int64[R]
    place: Tensor,  # int64[R]: elements from the first stack's start to where a row's key goes, of its first head
    stride: int,  # elements from a head of a page to the next
    parts: int,  # room for so many
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """[R,Hq,Dh]; the new keys and values are written first."""
    rows, heads, size = query.shape
    groups = key.shape[1]
    block, aligned = triton.next_power_of_2(size), 16 if size % 16 == 0 else 1
    write_kernel[rows, groups](
        key, value, anchor, keys, values, place, stride, groups, SIZE=size, BLOCK=block, ALIGNED=aligned, num_warps=1
    )
    found = query.new_empty(2, parts, heads, dtype=torch.float32)
    weighted = query.new_empty(parts, heads, size, dtype=torch.float32)
    each = heads // groups
    pieces_kernel[len(pieces), groups](
        query, anchor, keys, values, pieces, ordinals, found[0], found[1], weighted, heads, scale,
        2**62 if window is None else window, SIZE=size, BLOCK=block, GROUP=each,
        LANES=max(16, triton.next_power_of_2(SPAN * each)), TILE=TILE, SPAN=SPAN, HEAD=HEAD, ALIGNED=aligned,
        num_warps=4 if query.dtype.itemsize == 2 else 8,
    )  # fmt: skip
    result = torch.empty_like(query)
    parts_kernel[rows, heads](
        begin, found[0], found[1], weighted, result, heads, SIZE=size, BLOCK=block, PARTS=PARTS, num_warps=2
    )
    return result
