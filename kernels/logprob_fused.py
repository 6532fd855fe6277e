"""log softmax(hidden weight^T)[target] in one kernel: GEMM, online softmax and gather, no logits in memory at all.

For passes that need no gradient (a reference pass, evaluation), asked for by name: backend="triton-fused". Each
program takes a block of rows and a range of the vocabulary and leaves its maximum, its sum of exponentials and, where
the target lies in its range, the target's logit; a second kernel merges the ranges in order. Nothing is tuned at run
time.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 64


@triton.jit
def fused_logprob_kernel(
    hidden, weight, bias, rows, targets, part_max, part_sum, part_target,
    U, V, D, hidden_stride, weight_stride, tiles_per_split, softcap, inverse_temperature,
    HAS_BIAS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, UPCAST: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share a range of the vocabulary, so a weight tile is read from memory about once.
    # Each tile of logits joins the running maximum, sum and target logit; all three are left for the second kernel.
    u = tl.program_id(0) * M + tl.arange(0, M)
    split = tl.program_id(1)
    live = u < U
    row = u.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + u, mask=live, other=0)
    target = tl.load(targets + u, mask=live, other=-1)
    k = tl.arange(0, K)
    n = tl.arange(0, N)
    x_start = hidden + row[:, None] * hidden_stride + k[None, :]
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    hit = tl.zeros([M], tl.float32)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(V, N))
    for tile in range(first, last):
        v = tile * N + n
        inside = v < V
        w_start = weight + v.to(tl.int64)[None, :] * weight_stride + k[:, None]
        z = tl.zeros([M, N], tl.float32)
        for start in range(0, D, K):
            x = tl.load(x_start + start, mask=live[:, None] & (k[None, :] < D - start), other=0.0)
            w = tl.load(w_start + start, mask=inside[None, :] & (k[:, None] < D - start), other=0.0)
            if UPCAST:  # the interpreter mishandles bf16 operands
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            z = tl.dot(x, w, z, input_precision="ieee")
        if HAS_BIAS:
            z += tl.load(bias + v, mask=inside, other=0.0).to(tl.float32)[None, :]
        if HAS_SOFTCAP:
            z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
        z = z * inverse_temperature
        hit += tl.sum(tl.where(v[None, :] == target[:, None], z, 0.0), 1)
        z = tl.where(inside[None, :], z, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 1))
        base = tl.where(new_top > -float("inf"), new_top, 0.0)  # while all logits are -inf (a masked range)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(z - base[:, None]), 1)
        top = new_top
    out = split.to(tl.int64) * U + u
    tl.store(part_max + out, top, mask=live)
    tl.store(part_sum + out, total, mask=live)
    tl.store(part_target + out, hit, mask=live)


@triton.jit
def fused_merge_kernel(part_max, part_sum, part_target, logp, lse, U, splits, BLOCK: tl.constexpr):
    u = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = u < U
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    hit = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        at = u.to(tl.int64) + split * U
        part = tl.load(part_max + at, mask=live, other=0.0)
        new_top = tl.maximum(top, part)
        base = tl.where(new_top > -float("inf"), new_top, 0.0)
        total = total * tl.exp(top - base) + tl.load(part_sum + at, mask=live, other=1.0) * tl.exp(part - base)
        hit += tl.load(part_target + at, mask=live, other=0.0)
        top = new_top
    # The maximum leaves first: lse itself would round away what a small log-prob needs after a large shift.
    log_total = tl.log(total)
    tl.store(logp + u, (hit - top) - log_total, mask=live)
    tl.store(lse + u, top + log_total, mask=live)


def programs_at_once(device: torch.device) -> int:
    """Multiprocessors to fill; the interpreter gets a small number, so that tests have several splits."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def fused_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probs and log-sum-exps [U], fp32. hidden and weight are fp32, bf16 or fp16, unit stride in the last axis."""
    U, (V, D) = targets.shape[0], weight.shape
    device = hidden.device
    logp, lse = (torch.empty(U, dtype=torch.float32, device=device) for _ in range(2))
    if U == 0:
        return logp, lse
    row_blocks, tiles = triton.cdiv(U, BLOCK_M), triton.cdiv(V, BLOCK_N)
    tiles_per_split = triton.cdiv(tiles, max(1, min(tiles, programs_at_once(device) // row_blocks)))
    splits = triton.cdiv(tiles, tiles_per_split)  # none is empty: every partial maximum is a logit
    parts = torch.empty(3, splits, U, dtype=torch.float32, device=device)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    fused_logprob_kernel[(row_blocks, splits)](
        hidden, weight, weight if bias is None else bias, targets if rows is None else rows, targets, *parts,
        U, V, D, hidden.stride(0), weight.stride(0), tiles_per_split, softcap or 1.0, 1.0 / temperature,
        HAS_BIAS=bias is not None, HAS_ROWS=rows is not None, HAS_SOFTCAP=softcap is not None, UPCAST=interpreted,
        M=BLOCK_M, N=BLOCK_N, K=BLOCK_K if hidden.element_size() == 2 else BLOCK_K // 2, num_warps=8, num_stages=3,
    )  # fmt: skip
    fused_merge_kernel[(triton.cdiv(U, 128),)](*parts, logp, lse, U, splits, BLOCK=128, num_warps=4)
    return logp, lse
