"""The bf16 GEMM of our own, where this CPU has AVX512-BF16."""

from __future__ import annotations

import pytest
import torch

from bench.timing import peak_mib
from mmfast.ops.dispatch import native
from mmfast.ops.head import folds_native
from mmfast.ops.head.folds_native import bf16_product, has_bf16_gemm

pytestmark = pytest.mark.skipif(native() is None or not has_bf16_gemm(), reason="needs mmfast._C and AVX512-BF16")
SHAPES = [(1, 1, 1), (5, 33, 7), (13, 31, 64), (12, 96, 1025), (37, 70, 2050), (100, 64, 96)]


@pytest.mark.parametrize("left", ["rows", "transposed", "transposed, in slices"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_equals_fp64(left: str, transposed: bool, accumulate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if left.endswith("slices"):
        monkeypatch.setattr(folds_native, "SLICE", 100)
    for rows, columns, depth in SHAPES:
        a = torch.randn(rows, depth).bfloat16()
        if left != "rows":
            a = a.T.contiguous().T
        b = torch.randn(columns, depth).bfloat16().T if transposed else torch.randn(depth, columns).bfloat16()
        wide = torch.randn(rows, columns + 5)  # the result has a row stride
        out, beyond = wide[:, :columns], wide[:, columns:].clone()
        truth = a.double() @ b.double() + (out.double() if accumulate else 0)
        bf16_product(a, b, out, accumulate)
        assert (out - truth).abs().max() < 1e-4 * depth**0.5, (rows, columns, depth)
        assert torch.equal(wide[:, columns:], beyond)


def test_a_lone_row_or_column_keeps_any_stride() -> None:
    """torch calls a [U,1] matrix contiguous whatever its column stride: a transposed [1,U], a column of a matrix."""
    column, row = torch.randn(9, 7).bfloat16()[:, 3:4], torch.randn(1, 5).bfloat16()
    for a, b in ((column, row), (torch.randn(1, 9).bfloat16().T, torch.randn(5, 1).bfloat16().T)):
        assert a.stride(1) != 1 or a.stride(0) != 1
        out = torch.empty(9, 5)
        bf16_product(a, b, out, False)
        assert torch.equal(out, a.float() @ b.float())


def test_factors_may_share_memory() -> None:
    """A matrix with its own transpose, and with a part of itself."""
    x = torch.randn(70, 70).bfloat16()
    for a, b in ((x, x.T), (x.T, x), (x[:40], x[30:].T), (x[:, 1:41], x[5:45, 3:])):
        out = torch.empty(a.shape[0], b.shape[1])
        bf16_product(a, b, out, False)
        assert (out - a.double() @ b.double()).abs().max() < 1e-3


def test_a_transposed_matrix_is_not_copied_whole() -> None:
    """The weight's gradient is kept^T X, kept [U,V]."""
    kept, x = torch.randn(256, 32768).bfloat16(), torch.randn(256, 64).bfloat16()  # 16 MiB, its slices 4
    out = torch.empty(32768, 64)
    assert peak_mib(lambda: bf16_product(kept.T, x, out, False)) < 10
