"""The CUDA folds go through rows of an odd vocabulary by vectors of 16 bytes, as they do where the vocabulary is even:
every access to memory of the emulated kernels is counted (tests/ops/test_logprob_strides.py has the strides)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmfast.ops import linear_logprob
from mmfast.ops.head import backends, backward, tiles
from mmfast.ops.head.folds_native import NativeFolds
from tests.kernels import emulation
from tests.ops.test_logprob_strides import PATHS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counted by the emulation")
ROWS = 2


def counted(monkeypatch: pytest.MonkeyPatch, vocab: int, path: str, dtype: torch.dtype) -> tuple[int, int]:
    """Accesses of 16 bytes, and of single numbers, in a call forward and backward."""
    module, (trained, options) = emulation.emulated(), PATHS[path]
    monkeypatch.setitem(backends.FOLDS, "torch", lambda: NativeFolds("cuda", module))
    given: dict[str, Any] = {
        "hidden": torch.ones(ROWS, 8, dtype=dtype).requires_grad_(path != "stats"),
        "weight": torch.zeros(vocab, 8, dtype=dtype).requires_grad_(trained), "bias": torch.zeros(vocab),
    }  # fmt: skip
    emulation.run_in("ascending")
    module.watch(True)
    try:
        found = linear_logprob(**given, targets=torch.tensor([3, vocab - 1]), **options, tile_budget=1 << 18,
                               backend="torch")  # fmt: skip
        if path != "stats":
            sum(t.sum() for t in (found if isinstance(found, tuple) else (found,))).backward()  # type: ignore[union-attr]
        return module.accesses(16), sum(map(module.accesses, {dtype.itemsize, 4}))
    finally:
        emulation.run_in("ascending")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_an_odd_vocabulary_goes_by_vectors(monkeypatch: pytest.MonkeyPatch, path: str, dtype: torch.dtype) -> None:
    (wide, narrow), (odd_wide, odd_narrow) = (counted(monkeypatch, vocab, path, dtype) for vocab in (16384, 16385))
    assert odd_wide >= 0.99 * wide > 2 * ROWS * 16384 // 8
    assert odd_narrow < 1.5 * narrow, (narrow, odd_narrow)


def test_dense_rows_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count itself."""
    for place in (tiles, backward):
        monkeypatch.setattr(place, "padded", lambda columns: columns)
    even, odd = (counted(monkeypatch, vocab, "kept", torch.bfloat16) for vocab in (16384, 16385))
    assert odd[0] < 0.7 * even[0] and odd[1] > 3 * even[1]
