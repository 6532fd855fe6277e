"""Kernels that have no emulated twin, more than 2^31 elements from the first: the fused Triton GEMM, a decode step's
pages and noise (all interpreted), the CPU's bf16 GEMM and its tree attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfast.engines.decode_attention import PAGE, Stack
from mmfast.engines.pieces import Tables
from mmfast.engines.prefill import Node
from mmfast.ops.dispatch import available, native
from mmfast.ops.head.folds_native import has_bf16_gemm
from tests.kernels.conftest import FAR, Sparse
from tests.ops.subjects import tree_attention

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no sparse memory")
APART = FAR // 4  # so that the sixth row lies far out


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def far_out(sparse: Sparse, t: Tensor) -> Tensor:
    """The same values, the first dimension's rows far apart."""
    strides = [APART, *t[0].contiguous().stride()]
    return sparse(len(t) * APART, t.dtype).as_strided(t.shape, strides).copy_(t)


def test_fused_operands_of_triton(sparse: Sparse) -> None:
    pytest.importorskip("triton")
    from mmfast.kernels.logprob_fused import fused_logprob

    hidden, weight, targets = normal(6, 40).half(), normal(9, 40, seed=1).half(), torch.tensor([0, 8, 3, 3, 7, 1])
    want = fused_logprob(hidden, weight, targets, None, None, 1.0)
    assert torch.equal(fused_logprob(far_out(sparse, hidden), far_out(sparse, weight), targets, None, None, 1.0), want)


def test_fused_parts_of_triton(sparse: Sparse) -> None:
    """So many rows that the parts of the third column block lie far out. Of the rows only the first block is made."""
    pytest.importorskip("triton")
    from mmfast.kernels import logprob_fused as fused

    some, vocab, columns, many = 128, 300, 128, FAR // 2 + 64
    hidden, weight = normal(some, 40).half(), normal(vocab, 40, seed=1).half()
    targets = torch.arange(some) * 2 + 44
    want = fused.fused_logprob(hidden, weight, targets, None, None, 1.0)
    parts = [sparse(3 * many, torch.float32) for _ in range(3)]
    logp = torch.zeros(some)
    fused.fused_logprob_kernel[(3,)](
        hidden, weight, weight, targets, *parts, many, vocab, 40, 40, 40, 1.0, 1.0 / 0.6931471805599453,
        HAS_BIAS=False, HAS_SOFTCAP=False, UPCAST=True, PROGRAMS=1 << 30, GROUP=1, M=some, N=columns, K=64,
    )  # fmt: skip
    fused.fused_merge_kernel[(some // 32,)](*parts, logp, many, 3, BLOCK=32, PARTS=64)
    assert all(part[2 * many : 2 * many + some].any() for part in parts)
    torch.testing.assert_close(logp, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_decode_pages_of_triton(sparse: Sparse, dtype: torch.dtype) -> None:
    """The pool's last pages (the first is that of spare rows), and nodes at the end of their stack."""
    pytest.importorskip("triton")
    from mmfast.kernels import decode

    groups, size, length, anchor = 2, 16, 70, torch.empty(64, dtype=dtype)
    query, key, value = (normal(4, n, size, seed=n).to(dtype) for n in (2 * groups, groups, groups))
    held = [normal(2, places, groups, long, size, seed=long).to(dtype) for places, long in ((5, PAGE), (2, length))]

    def behind(t: Tensor, places: int) -> Tensor:
        wide = sparse(places * t[0].numel(), dtype).view(places, *t.shape[1:])
        wide[-len(t) :] = t
        return wide

    def run(far: bool) -> list[Tensor]:
        # Two nodes under three rows, whose pages are the pool's last four
        more = [FAR // t[0, 0].numel() if far else 0 for t in held]
        stacks = [
            Stack(*([behind(t, n + len(t)) if far else t.clone()] for t in pair), *[torch.zeros(0)] * 3)
            for pair, n in zip(held, more, strict=True)
        ]
        nodes = [Node(stacks[1], more[1] + n, length, 0) for n in range(2)]
        rows: list[Any] = [
            SimpleNamespace(of=SimpleNamespace(nodes=[nodes[r % 2]], ordinal=length, position=length),
                            tokens=[0] * (5 if r else PAGE + 3), pages=[more[0] + p for p in ([r] if r else [3, 4])])
            for r in range(3)
        ]  # fmt: skip
        # A step of them
        tables = Tables(rows, stacks[0], anchor)
        words = tables.shape.split(torch.from_numpy(tables.advance(rows)))
        assert not far or min(int(words.place[:3].min()), int(words.pieces[2:4, 1].min())) > FAR
        out = decode.attend(
            query, key, value, anchor, words.bases[0, 0], words.bases[0, 1], words.pieces, words.begin, words.ordinals,
            words.place, tables.stride, tables.shape.parts, scale=0.3,
        )  # fmt: skip
        return [out, *(t[0][-4:].clone() for t in (stacks[0].keys, stacks[0].values))]

    for got, want in zip(run(far=True), run(far=False), strict=True):
        assert torch.equal(got, want) and got.any()


def test_noise_of_triton(sparse: Sparse) -> None:
    """The second row's first numbers, behind a first row as long as that."""
    pytest.importorskip("triton")
    from mmfast.kernels import decode_noise

    names, first = torch.tensor([[1, 2, 3], [-4, 5, 6]]), 8 * decode_noise.BLOCK
    out = sparse(FAR + first, torch.float32)
    decode_noise.noise_kernel[(2, 1)](names, out, FAR, BLOCK=decode_noise.BLOCK)
    want = decode_noise.noise(names, first)
    assert torch.equal(out[:first], want[0]) and torch.equal(out[FAR:], want[1]) and not torch.equal(*want)


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_on_cpu(sparse: Sparse, transposed: bool) -> None:
    """Rows of all three matrices; B's rows are its columns where it comes transposed."""
    if available("cpu", torch.device("cpu")) or not has_bf16_gemm():
        pytest.skip("no bf16 GEMM on this CPU")
    module: Any = native()
    a, b, c = normal(13, 40).bfloat16(), normal(40, 40, seed=1).bfloat16(), normal(13, 40, seed=2)
    results = []
    for place in (torch.clone, lambda t: far_out(sparse, t)):
        left, right, to = place(a), place(b), place(c)
        right = right.T if transposed else right
        module.cpu_gemm_bf16(left, right, to, 13, 40, 40, left.stride(0), *right.stride(), to.stride(0), True, 1)
        results.append(to.clone())
    assert torch.equal(*results) and not torch.equal(results[0], c)


def test_tree_attention_on_cpu(sparse: Sparse) -> None:
    """Queries, keys, values and the gradient, a token's heads far from the next one's."""
    device = torch.device("cpu")
    if reason := available("cpu", device):
        pytest.skip(reason)
    subject = tree_attention(width=16)
    given, results = subject.arguments, []
    upstream = normal(*given["q"].shape, seed=9)
    for place in (torch.clone, lambda t: far_out(sparse, t)):
        leaf = {name: place(given[name]).requires_grad_() for name in ("q", "k", "v")}
        (out,) = subject.call(given | leaf, None)
        results.append((out, *torch.autograd.grad(out, tuple(leaf.values()), place(upstream))))
    assert all(torch.equal(far, near) for far, near in zip(*results, strict=True))


def test_the_memory_is_that_large(sparse: Sparse) -> None:
    t = far_out(sparse, normal(6, 3))
    assert (t[5, 2].data_ptr() - t.data_ptr()) // 4 > FAR and t[5].any()
