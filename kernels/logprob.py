"""The folds over one tile of logits, as mmfast/ops/head/folds.py describes them. The same folds as in
csrc/cuda/logprob.cu.

One program a row, which it walks in blocks of columns: once where a base for its exponentials is at hand, else twice.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

REACH = tl.constexpr(30.0)  # a base may lie so far below the maximum, as in csrc/cuda/logprob.cu
LOG2E = tl.constexpr(1.4426950408889634)
EXP_FLOOR = tl.constexpr(-87.0)  # below it exp is exactly zero: no denormals, as in csrc/math.h
STEP = 2048  # columns at a time, by
WARPS = 8


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
def others(row, bias, start, stop, y, softcap, inverse, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Columns from `start` on, which of them are inside, their mapped logits, and those with -inf at the target and
    outside."""
    column = start + tl.arange(0, BLOCK)
    inside = column < stop
    z = mapped(row, bias, column, inside, softcap, inverse, HAS_BIAS, HAS_SOFTCAP)
    return column, inside, z, tl.where(inside & (column != y), z, -float("inf"))


@triton.jit
def maximum(row, bias, stop, y, softcap, inverse, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, stop, BLOCK):
        _, _, _, other = others(row, bias, start, stop, y, softcap, inverse, HAS_BIAS, HAS_SOFTCAP, BLOCK)
        top = tl.maximum(top, other)
    return tl.max(top, 0)


@triton.jit
def exponentials(row, bias, stop, y, against, center, target, softcap, inverse, to_tanh, probs, probs_z,
                 HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, EXTRAS: tl.constexpr, PROBS: tl.constexpr,
                 PROBS_Z: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Writes the others' exponentials against a base. Returns the maximum, and the sums: e, what was written, the same
    before it was rounded, e (z - base), e^2, z over all columns."""
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    written = tl.zeros([BLOCK], tl.float32)
    exact = tl.zeros([BLOCK], tl.float32)
    sz = tl.zeros([BLOCK], tl.float32)
    s2 = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, stop, BLOCK):
        column, inside, z, other = others(row, bias, start, stop, y, softcap, inverse, HAS_BIAS, HAS_SOFTCAP, BLOCK)
        tl.store(target + column * 0, z, mask=inside & (column == y))
        top = tl.maximum(top, other)
        x = other - against
        e = tl.exp2(x * LOG2E)
        s += e
        if EXTRAS:
            sz += tl.where(e > 0, e * x, 0.0)
            s2 += e * e
            total += z  # 0 outside
        if PROBS:
            weight = weighted(e, z, to_tanh, HAS_SOFTCAP)
            out = weight.to(probs.dtype.element_ty)
            if HAS_SOFTCAP:
                exact += weight
            written += out.to(tl.float32)
            tl.store(probs + column, out, mask=inside)
        if PROBS_Z:
            out_z = tl.where(weight > 0, weight * (other - center), 0.0)
            tl.store(probs_z + column, out_z.to(probs_z.dtype.element_ty), mask=inside)
    if not HAS_SOFTCAP:
        exact = s
    return (tl.max(top, 0), tl.sum(s, 0), tl.sum(written, 0), tl.sum(exact, 0), tl.sum(sz, 0), tl.sum(s2, 0),
            tl.sum(total, 0))  # fmt: skip


@triton.jit
def fold_forward_kernel(
    tile, tile_stride, bias, targets, first, stats, U, width, softcap, inverse_temperature, to_tanh,
    probs, probs_stride, probs_z, probs_z_stride, base_to, sums, sums_stride, sums_width,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, EXTRAS: tl.constexpr, PROBS: tl.constexpr,
    PROBS_Z: tl.constexpr, HAS_BASE: tl.constexpr, HAS_SUMS: tl.constexpr, BEGINS: tl.constexpr,
    ONE_PASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t, U = tl.program_id(0).to(tl.int64), tl.cast(U, tl.int64)  # 8 U may be beyond 32 bits
    row = tile + t * tile_stride
    y = tl.load(targets + t) - first
    y = tl.where((y >= 0) & (y < width), y, -1).to(tl.int32)
    stats += t
    probs += t * probs_stride
    probs_z += t * probs_z_stride
    # The statistics so far. A row without a base takes the maximum of its first columns, or of all.
    m_before, s_before, sz_before, s2_before = -float("inf"), 0.0, 0.0, 0.0
    total_before, base_before, written_before, center = 0.0, -float("inf"), 0.0, 0.0
    if BEGINS:
        tl.store(stats + 2 * U, 0.0, mask=y < 0)  # a later tile has the target
    else:
        m_before, s_before, sz_before, s2_before = (
            tl.load(stats), tl.load(stats + U), tl.load(stats + 3 * U), tl.load(stats + 4 * U),
        )  # fmt: skip
        total_before, base_before, written_before = (
            tl.load(stats + 5 * U), tl.load(stats + 7 * U), tl.load(stats + 8 * U),
        )  # fmt: skip
        if PROBS_Z:
            center = tl.load(stats + 6 * U)
    seen = base_before > -float("inf")
    base = base_before
    probe = tl.minimum(width, BLOCK) if ONE_PASS else width
    if not (ONE_PASS and seen):
        top = maximum(row, bias, probe, y, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP, BLOCK)
        base = tl.maximum(base_before, top)
    against = tl.where(base > -float("inf"), base, 0.0)
    if PROBS_Z and not seen:
        _, s, _, _, sz, _, _ = exponentials(
            row, bias, probe, y, against, center, stats + 2 * U, softcap, inverse_temperature, to_tanh, probs, probs_z,
            HAS_BIAS, HAS_SOFTCAP, True, False, False, BLOCK,
        )  # fmt: skip
        center = against + tl.where(s > 0, sz / tl.where(s > 0, s, 1.0), 0.0)
    m, s, written, exact, sz, s2, total = exponentials(
        row, bias, width, y, against, center, stats + 2 * U, softcap, inverse_temperature, to_tanh, probs, probs_z,
        HAS_BIAS, HAS_SOFTCAP, EXTRAS, PROBS, PROBS_Z, BLOCK,
    )  # fmt: skip
    if ONE_PASS and ((m > base + REACH) | ((m > -float("inf")) & (base == -float("inf")))):  # too far above: once more
        base = m
        center = tl.where(seen, center, m)
        m, s, written, exact, sz, s2, total = exponentials(
            row, bias, width, y, base, center, stats + 2 * U, softcap, inverse_temperature, to_tanh, probs, probs_z,
            HAS_BIAS, HAS_SOFTCAP, EXTRAS, PROBS, PROBS_Z, BLOCK,
        )  # fmt: skip
    # What earlier tiles gave is brought to this base; the statistics, which are exact, to the maximum.
    m = tl.maximum(m_before, m)
    top = tl.where(m > -float("inf"), m, 0.0)
    factor = exp_or_zero(tl.where(seen, base_before - base, 0.0))
    if HAS_SUMS and factor != 1.0:
        for start in range(0, sums_width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < sums_width
            x = tl.load(sums + t * sums_stride + column, mask=inside)
            tl.store(sums + t * sums_stride + column, x * factor, mask=inside)
    drop = tl.where(m_before > -float("inf"), m_before - top, 0.0)
    below = tl.where(base > -float("inf"), base - top, 0.0)
    old, new = exp_or_zero(drop), exp_or_zero(below)
    tl.store(stats, m)
    tl.store(stats + U, old * s_before + new * s)
    tl.store(stats + 3 * U, tl.where(old > 0, old * (sz_before + s_before * drop), 0.0) + new * (sz + s * below))
    tl.store(stats + 4 * U, old * old * s2_before + new * new * s2)
    tl.store(stats + 5 * U, total_before + total)
    tl.store(stats + 7 * U, base)
    if PROBS:
        s = s * tl.where(exact > 0, written / tl.where(exact > 0, exact, 1.0), 1.0)
    tl.store(stats + 8 * U, factor * written_before + s)
    if PROBS_Z:
        tl.store(stats + 6 * U, center)
    if HAS_BASE:
        tl.store(base_to + t, base)


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


def fold_forward(tile: Any, stats: Tensor, spec: Any, to: Any) -> None:
    """`tile`, `spec` and `to` as in mmfast/ops/head/folds.py."""
    logits, bias, targets, first = tile
    rows, width = logits.shape
    if rows == 0:
        return
    probs, probs_z, sums, base = (logits if t is None else t for t in to)
    in_place = probs.data_ptr() == logits.data_ptr()
    one_pass = to.probs is None or (probs.dtype != torch.float16 and not in_place)
    fold_forward_kernel[(rows,)](
        logits, logits.stride(0), logits if bias is None else bias, targets, first, stats, rows, width,
        *scalars(spec.softcap, spec.temperature), probs, probs.stride(0), probs_z, probs_z.stride(0), base, sums,
        sums.stride(0), sums.shape[1], HAS_BIAS=bias is not None, HAS_SOFTCAP=spec.softcap != 0,
        EXTRAS=spec.entropy or spec.squares or spec.total, PROBS=to.probs is not None, PROBS_Z=to.probs_z is not None,
        HAS_BASE=to.base is not None, HAS_SUMS=to.sums is not None, BEGINS=first == 0,
        ONE_PASS=one_pass, BLOCK=block_of(width), num_warps=WARPS,
    )  # fmt: skip


def fold_gradient(tile: Any, lse: Tensor, a: Tensor, b: Tensor | None, d: Tensor, spec: Any, out: Tensor) -> None:
    logits, bias, targets, first = tile
    rows, width = logits.shape
    if rows == 0 or width == 0:
        return
    block = block_of(width)
    lse, a, d = lse.contiguous(), a.contiguous(), d.contiguous()
    fold_gradient_kernel[(rows, triton.cdiv(width, block))](
        logits, logits.stride(0), logits if bias is None else bias, targets, first, lse, a,
        a if b is None else b.contiguous(), d, out, out.stride(0), width, *scalars(spec.softcap, spec.temperature),
        HAS_BIAS=bias is not None, HAS_SOFTCAP=spec.softcap != 0, HAS_B=b is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip


def fold_finish(kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
    rows, columns = kept.shape
    if kept.numel():
        fold_finish_kernel[(rows, scale.shape[0])](
            kept, kept.stride(0), columns, scale, width, targets, entry, BLOCK=block_of(width), num_warps=4
        )
