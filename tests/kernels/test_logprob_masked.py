"""Biases of -inf on the GPU's kernels: emulated CUDA, interpreted Triton, and the fused kernel."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.emulation import emulate_cuda
from tests.ops.logprob_masked import MASKS, problems

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="emulated and interpreted where there is no GPU")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_folds(backend: str, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "cuda":
        emulate_cuda(monkeypatch)
    else:
        pytest.importorskip("triton")
    assert not problems(mask, True, torch.float32, backend=backend)
    assert not problems(mask, True, torch.float32, backend=backend, keep_budget=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_the_fused_kernel(mask: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert not problems(mask, False, dtype, backend="triton-fused")
