"""The walk of tests/ops/layouts.py on the GPU's kernels: CUDA emulated on the host, Triton in its interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from tests.kernels.emulation import emulate_cuda
from tests.ops import subjects
from tests.ops.layouts import Subject, aliases, walk
from tests.ops.subjects import PATHS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="emulated and interpreted where there is no GPU")
BACKENDS = ["cuda", "triton"]
SOME = ("hidden", "bias", "targets")  # all that the interpreter, which is slow, tries on the other paths
BF16, FP16, FP64 = (
    pytest.param(d, marks=pytest.mark.slow, id=str(d)) for d in (torch.bfloat16, torch.float16, torch.float64)
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        emulate_cuda(monkeypatch)
    else:
        pytest.importorskip("triton")
        assert os.environ["TRITON_INTERPRET"] == "1"
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("path", PATHS)
def test_linear_logprob(backend: str, path: str, dtype: torch.dtype) -> None:
    if backend == "triton" and path not in ("kept", "recompute"):
        pytest.skip("the interpreter is slow; the other paths launch the same kernels")
    briefly = dtype != torch.float32 or path != "kept" or backend == "triton"
    some = SOME if backend == "triton" and path != "kept" else ()
    assert not walk(subjects.linear_logprob(path, dtype=dtype), backend, briefly, some)


SHARING: dict[str, Callable[[], Subject]] = {
    **{f"linear_logprob, {path}": lambda p=path: subjects.linear_logprob(p) for path in PATHS},
    "linear_preference_loss": lambda: subjects.linear_preference_loss(False),
    "preference_loss": subjects.preference_loss,
    "splice_embeddings": subjects.splice_embeddings,
    "tree_attention": subjects.tree_attention,
}


@pytest.mark.parametrize("name", SHARING)
def test_arguments_that_share_memory(backend: str, name: str) -> None:
    if backend == "triton" and name not in ("linear_logprob, kept", "preference_loss", "splice_embeddings"):
        pytest.skip("the interpreter is slow, and the others launch the same kernels")
    assert not aliases(SHARING[name](), None if name == "tree_attention" else backend)


def test_arguments_of_the_fused_kernel_of_triton_that_share_memory() -> None:
    pytest.importorskip("triton")
    assert not aliases(subjects.fused_logprob(), None)


@pytest.mark.parametrize("size", ["one row", "one column", "one word"])
def test_the_smallest_sizes(backend: str, size: str) -> None:
    if backend == "triton" and size != "one row":
        pytest.skip("the interpreter is slow; tests/ops and the emulation try the others")
    assert not walk(subjects.linear_logprob("kept", size), backend, briefly=True)


def test_linear_logprob_without_rows(backend: str) -> None:
    subject = subjects.without(subjects.linear_logprob("recompute"), "rows")
    subject.arguments["targets"] = subject.arguments["targets"][:5]
    subject.empty.pop("targets"), subject.empty.pop("rows"), subject.empty.pop("hidden")
    assert not walk(subject, backend, backend == "triton", SOME if backend == "triton" else ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP16])
def test_fused_logprob(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert not walk(subjects.fused_logprob(dtype=dtype), None, briefly=dtype != torch.bfloat16)
    assert not walk(subjects.fused_logprob("one column", dtype), None, briefly=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_selective_logprob(backend: str, inplace: bool, dtype: torch.dtype) -> None:
    for scored, vocab in ((6, 72), (1, 71), (6, 1)):
        assert not walk(subjects.selective_logprob(inplace, dtype, scored, vocab), backend, briefly=scored == 1)


@pytest.mark.parametrize("dtype", [torch.float32, FP64])
def test_preference_loss(backend: str, dtype: torch.dtype) -> None:
    assert not walk(subjects.preference_loss(dtype), backend)


@pytest.mark.parametrize("recompute", [False, True])
def test_linear_preference_loss(backend: str, recompute: bool) -> None:
    some = ("bias", "weights") if backend == "triton" else ("bias", "weights", "lora[0]", "targets", "index")
    assert not walk(subjects.linear_preference_loss(recompute), backend, True, some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP64])
def test_splice_embeddings(backend: str, dtype: torch.dtype) -> None:
    for width in (8, 1):
        assert not walk(subjects.splice_embeddings(dtype, width), backend)


def test_tree_attention_sums_its_copies(backend: str) -> None:
    """Its backward pass sums by the first backend that is there; Triton is asked for by the environment only."""
    if backend == "triton":
        pytest.skip("the interpreter is never a choice, and tree_attention takes no backend for its sums")
    assert not walk(subjects.tree_attention(), None)
