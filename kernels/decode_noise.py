"""The noise of drawn tokens on the device: numpy's Philox 4x64-10, bit for bit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # of four words each


@triton.jit
def noise_kernel(names, out, length, BLOCK: tl.constexpr):
    """out[r, e] = k + 1/2, k the e-th 32 bits of the generator with the key names[r, :2] and the counter's last word
    names[r, 2]. numpy counts up before the first block."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key0 = tl.load(names + 3 * row).to(tl.uint64, bitcast=True)
    key1 = tl.load(names + 3 * row + 1).to(tl.uint64, bitcast=True)
    c0 = (block + 1).to(tl.uint64)
    c1 = tl.zeros([BLOCK], tl.uint64)
    c2 = tl.zeros([BLOCK], tl.uint64)
    c3 = c1 + tl.load(names + 3 * row + 2).to(tl.uint64, bitcast=True)
    times0 = tl.full([BLOCK], 0xD2E7470EE14C6C93, tl.uint64)
    times1 = tl.full([BLOCK], 0xCA5A826395121157, tl.uint64)
    more0 = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    more1 = tl.full([], 0xBB67AE8584CAA73B, tl.uint64)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(times0, c0)
        high1 = tl.umulhi(times1, c2)
        low0 = times0 * c0
        low1 = times1 * c2
        c0 = high1 ^ c1 ^ key0
        c2 = high0 ^ c3 ^ key1
        c1 = low1
        c3 = low0
        key0 += more0
        key1 += more1
    to = out + row * length + block * 8
    left = length - block * 8
    for word in tl.static_range(4):
        bits = c0 if word == 0 else c1 if word == 1 else c2 if word == 2 else c3
        low = (bits & 0xFFFFFFFF).to(tl.uint32)
        high = (bits >> 32).to(tl.uint32)
        tl.store(to + 2 * word, low.to(tl.float32) + 0.5, mask=2 * word < left)
        tl.store(to + 2 * word + 1, high.to(tl.float32) + 0.5, mask=2 * word + 1 < left)


def noise(names: Tensor, length: int) -> Tensor:
    """fp32 [R, length] of int64 names [R, 3]."""
    out = torch.empty(len(names), length, dtype=torch.float32, device=names.device)
    noise_kernel[len(names), triton.cdiv(length, 8 * BLOCK)](names, out, length, BLOCK=BLOCK, num_warps=4)
    return out
