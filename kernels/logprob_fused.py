"""log softmax(hidden weight^T)[target] by a GEMM that stores no logits: what it leaves of a tile is, for every row, the
maximum and the sum of exponentials of the columns other than the target's, and the target's logit.

For passes that need no gradient (a reference pass, evaluation), asked for by name: backend="triton-fused". Programs are
as many as multiprocessors and take tiles in turn, sixteen blocks of rows to a column block; operands come by tensor
descriptors (TMA where the device has it). A second kernel merges the tiles in order. Nothing is tuned at run time.
"""

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M, BLOCK_K, GROUP = 128, 64, 16
ALIGNED = 16  # bytes, of addresses and row strides that a descriptor takes


@triton.jit
def part(z, v, target, bias, V, softcap, scale, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Of logits z of columns v, in units of log 2: those of the other columns, and the target's or 0."""
    if HAS_BIAS:
        z += tl.load(bias + v, mask=v < V, other=0.0).to(tl.float32)[None, :]
    if HAS_SOFTCAP:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
    z = z * scale
    at_target = v[None, :] == target[:, None]
    hit = tl.sum(tl.where(at_target, z, 0.0), 1)
    return tl.where(at_target | (v[None, :] >= V), -float("inf"), z), hit


@triton.jit
def based(top):
    """What exponentials are taken against: 0 while all logits are -inf (a masked range)."""
    return tl.where(top > -float("inf"), top, 0.0)


@triton.jit
def fused_logprob_kernel(
    hidden, weight, bias, targets, part_max, part_sum, part_target,
    U, V, D, hidden_stride, weight_stride, softcap, scale,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, UPCAST: tl.constexpr, PROGRAMS: tl.constexpr,
    GROUP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    x_tiles = tl.make_tensor_descriptor(hidden, shape=[U, D], strides=[hidden_stride, 1], block_shape=[M, K])
    w_tiles = tl.make_tensor_descriptor(weight, shape=[V, D], strides=[weight_stride, 1], block_shape=[N, K])
    rows, columns = tl.cdiv(U, M), tl.cdiv(V, N)
    H: tl.constexpr = N // 2
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS, flatten=not UPCAST):
        # Which tile: down a group of row blocks, then on to the next columns
        group = tile // (GROUP * columns)
        height = tl.minimum(rows - group * GROUP, GROUP)
        r = group * GROUP + (tile % (GROUP * columns)) % height
        c = (tile % (GROUP * columns)) // height
        z = tl.zeros([M, N], tl.float32)
        for k in range(0, tl.cdiv(D, K)):
            x = x_tiles.load([r * M, k * K])
            w = w_tiles.load([c * N, k * K])
            if UPCAST:  # the interpreter mishandles bf16 operands
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            z = tl.dot(x, w.T, z)
        # What is left of its logits, taken in halves: whole, they spill twice as many registers
        u = r * M + tl.arange(0, M)
        target = tl.load(targets + u, mask=u < U, other=-1).to(tl.int32)
        left, right = tl.reshape(z, (M, 2, H)).permute(0, 2, 1).split()
        v = c * N + tl.arange(0, H)
        left, hit = part(left, v, target, bias, V, softcap, scale, HAS_BIAS, HAS_SOFTCAP)
        right, hit_right = part(right, v + H, target, bias, V, softcap, scale, HAS_BIAS, HAS_SOFTCAP)
        top = tl.maximum(tl.max(left, 1), tl.max(right, 1))
        base = based(top)[:, None]
        total = tl.sum(tl.exp2(left - base), 1) + tl.sum(tl.exp2(right - base), 1)
        out = c.to(tl.int64) * U + u
        tl.store(part_max + out, top, mask=u < U)
        tl.store(part_sum + out, total, mask=u < U)
        tl.store(part_target + out, hit + hit_right, mask=u < U)


@triton.jit
def fused_merge_kernel(part_max, part_sum, part_target, logp, U, parts, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    u = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    hit = tl.zeros([BLOCK], tl.float32)
    for first in range(0, parts, PARTS):
        p = first + tl.arange(0, PARTS)
        at = p.to(tl.int64)[:, None] * U + u[None, :]
        live = (p < parts)[:, None] & (u < U)[None, :]
        high = tl.load(part_max + at, mask=live, other=-float("inf"))
        new_top = tl.maximum(top, tl.max(high, 0))
        base = based(new_top)
        sums = tl.load(part_sum + at, mask=live, other=0.0) * tl.exp2(high - base[None, :])
        total = total * tl.exp2(top - base) + tl.sum(sums, 0)
        hit += tl.sum(tl.load(part_target + at, mask=live, other=0.0), 0)
        top = new_top
    # log p = -log(1 + e^d), d = log-sum-exp of the others - the target's logit: exact where p is nearly 1
    d = 0.6931471805599453 * ((based(top) - hit) + tl.log2(total))
    e = tl.exp(-tl.abs(d))
    rest = tl.where(e < 1e-3, e - 0.5 * e * e, tl.log(1.0 + e))
    tl.store(logp + u, -(tl.maximum(d, 0.0) + rest), mask=u < U)


def tile_of(device: torch.device) -> tuple[int, int]:
    """(columns of a tile, programs). The interpreter gets few programs, so that each takes several tiles."""
    if device.type != "cuda":
        return 128, 3
    properties = torch.cuda.get_device_properties(device)
    return 256 if properties.major == 9 else 128, properties.multi_processor_count


def described(t: Tensor) -> Tensor:
    """The matrix as a descriptor takes it; another layout is copied."""
    size = t.element_size()
    if t.stride(1) == 1 and t.data_ptr() % ALIGNED == 0 and t.stride(0) * size % ALIGNED == 0:
        return t
    step = ALIGNED // size
    wide = t.new_zeros(t.shape[0], -(-t.shape[1] // step) * step)
    wide[:, : t.shape[1]] = t
    return wide[:, : t.shape[1]]


def fused_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None, temperature: float
) -> Tensor:
    """Log-probs [U], fp32, of hidden [U,D] and weight [V,D] in bf16 or fp16."""
    (U, D), V = hidden.shape, weight.shape[0]
    logp = torch.empty(U, dtype=torch.float32, device=hidden.device)
    if U == 0:
        return logp
    hidden, weight = described(hidden), described(weight)
    columns, programs = tile_of(hidden.device)
    count = triton.cdiv(V, columns)
    parts = torch.empty(3, count, U, dtype=torch.float32, device=hidden.device)
    # Descriptors are written to memory that the caller provides
    triton.set_allocator(lambda size, _alignment, _stream: torch.empty(size, dtype=torch.int8, device=hidden.device))
    fused_logprob_kernel[(min(programs, triton.cdiv(U, BLOCK_M) * count),)](
        hidden, weight, weight if bias is None else bias, targets, *parts, U, V, D, hidden.stride(0), weight.stride(0),
        softcap or 1.0, 1.0 / (temperature * math.log(2)), HAS_BIAS=bias is not None, HAS_SOFTCAP=softcap is not None,
        UPCAST=os.environ.get("TRITON_INTERPRET") == "1", PROGRAMS=programs, GROUP=GROUP, M=BLOCK_M, N=columns,
        K=BLOCK_K, num_warps=8, num_stages=3,
    )  # fmt: skip
    fused_merge_kernel[(triton.cdiv(U, 32),)](*parts, logp, U, count, BLOCK=32, PARTS=64, num_warps=4)
    return logp
