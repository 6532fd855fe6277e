"""The folds over one tile of logits, as mmfast/ops/head/folds.py describes them. The same folds as in
csrc/cuda/logprob.cu.

One program a row. It walks the tile in blocks of columns, twice: for the maximum, then for the sums and exponentials.
"""

import triton
import triton.language as tl
from torch import Tensor

EXP_FLOOR = tl.constexpr(-87.0)  # below it exp is exactly zero: no denormals, as in csrc/math.h
STEP = 4096


@triton.jit
def exp_or_zero(x):
    return tl.where(x < EXP_FLOOR, 0.0, tl.exp(tl.maximum(x, EXP_FLOOR)))


@triton.jit
def mapped(row, bias, column, inside, softcap, inverse_temperature, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Logits after bias, softcap and temperature; 0 outside."""
    z = tl.load(row + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + column, mask=inside, other=0.0)
    if HAS_SOFTCAP:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
    return z * inverse_temperature


@triton.jit
def weighted(e, z, to_tanh, HAS_SOFTCAP: tl.constexpr):
    """e times the softcap's slope; a zero stays zero whatever z is."""
    if HAS_SOFTCAP:
        t = z * to_tanh
        e = tl.where(e > 0, e * (1 - t * t), 0.0)
    return e


@triton.jit
def fold_forward_kernel(
    tile, tile_stride, bias, targets, first, stats, U, width, softcap, inverse_temperature, to_tanh,
    probs, probs_stride, probs_z, probs_z_stride,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PROBS: tl.constexpr, PROBS_Z: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    row = tile + t * tile_stride
    y = tl.load(targets + t) - first
    lane = tl.arange(0, BLOCK)
    # The others' maximum, and the target's logit.
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + lane
        inside = column < width
        z = mapped(row, bias, column, inside, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP)
        top = tl.where(inside & (column != y), tl.maximum(top, z), top)
        tl.store(stats + 2 * U + t + lane * 0, z, mask=inside & (column == y))

    # Their sums relative to the maximum after this tile; the exponentials are written on the way unless PROBS_Z,
    # which needs the sums first, is asked for too.
    before = tl.load(stats + t)
    m = tl.maximum(before, tl.max(top, 0))
    base = tl.where(m > -float("inf"), m, 0.0)
    drop = tl.where(before > -float("inf"), before - base, 0.0)
    factor = exp_or_zero(drop)
    s = tl.zeros([BLOCK], tl.float32)
    sz = tl.zeros([BLOCK], tl.float32)
    s2 = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + lane
        inside = column < width
        z = mapped(row, bias, column, inside, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP)
        e = tl.where(inside & (column != y), exp_or_zero(z - base), 0.0)
        s += e
        sz += tl.where(e > 0, e * (z - base), 0.0)
        s2 += e * e
        total += z
        if PROBS and not PROBS_Z:
            out = weighted(e, z, to_tanh, HAS_SOFTCAP)
            tl.store(probs + t * probs_stride + column, out.to(probs.dtype.element_ty), mask=inside)
    # The statistics, moved to that maximum.
    s_before = tl.load(stats + U + t)
    s_tile = tl.sum(s, 0)
    sz_tile = tl.sum(sz, 0)
    s_after = factor * s_before + s_tile
    sz_before = tl.load(stats + 3 * U + t)
    tl.store(stats + t, m)
    tl.store(stats + U + t, s_after)
    tl.store(stats + 3 * U + t, tl.where(factor > 0, factor * (sz_before + s_before * drop), 0.0) + sz_tile)
    tl.store(stats + 4 * U + t, factor * factor * tl.load(stats + 4 * U + t) + tl.sum(s2, 0))
    tl.store(stats + 5 * U + t, tl.load(stats + 5 * U + t) + tl.sum(total, 0))
    tl.store(stats + 7 * U + t, factor)
    if PROBS_Z:  # needs the first tile's sums before it can be written
        mean = base + tl.where(s_after > 0, sz_tile / tl.where(s_after > 0, s_after, 1.0), 0.0)
        center = tl.where(before > -float("inf"), tl.load(stats + 6 * U + t), mean)
        tl.store(stats + 6 * U + t, center)
        for start in range(0, width, BLOCK):
            column = start + lane
            inside = column < width
            z = mapped(row, bias, column, inside, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP)
            e = tl.where(inside & (column != y), exp_or_zero(z - base), 0.0)
            out = weighted(e, z, to_tanh, HAS_SOFTCAP)
            out_z = tl.where(e > 0, out * (z - center), 0.0)
            tl.store(probs_z + t * probs_z_stride + column, out_z.to(probs_z.dtype.element_ty), mask=inside)
            if PROBS:
                tl.store(probs + t * probs_stride + column, out.to(probs.dtype.element_ty), mask=inside)


@triton.jit
def fold_gradient_kernel(
    tile, tile_stride, bias, targets, first, lse, a, b, d, out, out_stride, width,
    softcap, inverse_temperature, to_tanh,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    y = tl.load(targets + t) - first
    z = mapped(tile + t * tile_stride, bias, column, inside, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP)
    logp = z - tl.load(lse + t)
    coefficient = tl.load(a + t)
    if HAS_B:
        coefficient += tl.load(b + t) * logp
    p = exp_or_zero(logp)
    g = tl.where(p > 0, weighted(p, z, to_tanh, HAS_SOFTCAP) * coefficient, 0.0)
    g = tl.where(column == y, tl.load(d + t), g)
    tl.store(out + t * out_stride + column, g.to(out.dtype.element_ty), mask=inside)


@triton.jit
def fold_rescale_kernel(acc, stride, factor, width, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    f = tl.load(factor + t)
    if f != 1.0:  # a row whose maximum stayed is not even read
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        x = tl.load(acc + t * stride + column, mask=inside)
        tl.store(acc + t * stride + column, x * f, mask=inside)


@triton.jit
def fold_finish_kernel(kept, stride, columns, scale, width, targets, entry, BLOCK: tl.constexpr):
    """Programs (row, tile of `width` columns)."""
    t = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    row = kept + t * stride
    f = tl.load(scale + tile * tl.num_programs(0) + t)
    y = tl.load(targets + t)
    value = tl.load(entry + t)
    first = tile * width
    end = tl.minimum(first + width, columns)
    if f != 1.0:
        for start in range(first, end, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < end
            x = tl.load(row + column, mask=inside).to(tl.float32) * f
            tl.store(row + column, tl.where(column == y, value, x).to(kept.dtype.element_ty), mask=inside)
    elif (y >= first) & (y < end):
        tl.store(row + y, value.to(kept.dtype.element_ty))


def scalars(softcap: float, temperature: float) -> tuple[float, float, float]:
    """Returns the softcap (0: none), 1 / temperature, and what takes a mapped logit back to its tanh."""
    return softcap or 1.0, 1.0 / temperature, temperature / softcap if softcap else 0.0


def block_of(width: int) -> int:
    return min(triton.next_power_of_2(max(width, 32)), STEP)


def fold_forward(
    tile: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    stats: Tensor,
    softcap: float,
    temperature: float,
    probs: Tensor | None,
    probs_z: Tensor | None,
) -> None:
    rows, width = tile.shape
    if rows == 0:
        return
    cap, inverse, to_tanh = scalars(softcap, temperature)
    to, to_z = (tile if t is None else t for t in (probs, probs_z))
    fold_forward_kernel[(rows,)](
        tile, tile.stride(0), tile if bias is None else bias, targets, first, stats, rows, width, cap, inverse, to_tanh,
        to, to.stride(0), to_z, to_z.stride(0), HAS_BIAS=bias is not None, HAS_SOFTCAP=softcap != 0,
        PROBS=probs is not None, PROBS_Z=probs_z is not None, BLOCK=block_of(width), num_warps=8,
    )  # fmt: skip


def fold_gradient(
    tile: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    lse: Tensor,
    a: Tensor,
    b: Tensor | None,
    d: Tensor,
    softcap: float,
    temperature: float,
    out: Tensor,
) -> None:
    rows, width = tile.shape
    if rows == 0 or width == 0:
        return
    block = min(block_of(width), 2048)
    lse, a, d = lse.contiguous(), a.contiguous(), d.contiguous()
    b_or_a = a if b is None else b.contiguous()
    fold_gradient_kernel[(rows, triton.cdiv(width, block))](
        tile, tile.stride(0), tile if bias is None else bias, targets, first, lse, a, b_or_a, d, out,
        out.stride(0), width, *scalars(softcap, temperature), HAS_BIAS=bias is not None,
        HAS_SOFTCAP=softcap != 0, HAS_B=b is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip


def fold_rescale(acc: Tensor, factor: Tensor) -> None:
    rows, width = acc.shape
    if acc.numel():
        block = min(block_of(width), 1024)
        grid = (rows, triton.cdiv(width, block))
        fold_rescale_kernel[grid](acc, acc.stride(0), factor.contiguous(), width, BLOCK=block, num_warps=4)


def fold_finish(kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
    rows, columns = kept.shape
    if kept.numel():
        block = min(block_of(width), 2048)
        fold_finish_kernel[(rows, scale.shape[0])](
            kept, kept.stride(0), columns, scale, width, targets, entry, BLOCK=block, num_warps=4,
        )  # fmt: skip
