"""The bf16 GEMM of our own: every engine this CPU has, and the AMX loops over emulated tiles."""

from __future__ import annotations

import pytest
import torch

from mmfast.ops.dispatch import native

pytestmark = pytest.mark.skipif(native() is None, reason="mmfast._C was not built")
SHAPES = [(1, 1, 1), (5, 33, 7), (13, 31, 64), (12, 96, 1025), (37, 70, 2050), (100, 64, 96)]


@pytest.mark.parametrize("engine", native().cpu_gemm_engines().split(",") if native() else [])  # type: ignore[union-attr]
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_equals_fp64(engine: str, transposed: bool, accumulate: bool) -> None:
    from mmfast.ops.head.folds_native import bf16_product

    torch.manual_seed(0)
    for rows, columns, depth in SHAPES:
        a = torch.randn(rows, depth).bfloat16()
        b = torch.randn(columns, depth).bfloat16().T if transposed else torch.randn(depth, columns).bfloat16()
        wide = torch.randn(rows, columns + 5)  # the result has a row stride
        out, beyond = wide[:, :columns], wide[:, columns:].clone()
        truth = a.double() @ b.double() + (out.double() if accumulate else 0)
        bf16_product(a, b, out, accumulate, engine)
        assert (out - truth).abs().max() < 1e-4 * depth**0.5, (rows, columns, depth)
        assert torch.equal(wide[:, columns:], beyond)


@pytest.mark.parametrize("engine", native().cpu_gemm_engines().split(",") if native() else [])  # type: ignore[union-attr]
def test_a_lone_row_or_column_keeps_any_stride(engine: str) -> None:
    """torch calls a [U,1] matrix contiguous whatever its column stride: a transposed [1,U], a column of a matrix."""
    from mmfast.ops.head.folds_native import bf16_product

    column, row = torch.randn(9, 7).bfloat16()[:, 3:4], torch.randn(1, 5).bfloat16()
    for a, b in ((column, row), (torch.randn(1, 9).bfloat16().T, torch.randn(5, 1).bfloat16().T)):
        assert a.stride(1) != 1 or a.stride(0) != 1
        out = torch.empty(9, 5)
        bf16_product(a, b, out, False, engine)
        assert torch.equal(out, a.float() @ b.float())


def test_an_engine_this_cpu_lacks_is_named() -> None:
    from mmfast.ops.head.folds_native import bf16_product

    a = torch.ones(2, 2).bfloat16()
    with pytest.raises(ValueError, match="no bf16 GEMM engine avx1024"):
        bf16_product(a, a, torch.empty(2, 2), False, "avx1024")
