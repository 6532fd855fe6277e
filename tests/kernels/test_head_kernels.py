"""linear_logprob whole, on the GPU's folds: every path, forward and backward, against fp64.

Without a device the CUDA kernels stand in for the torch folds (emulated on the host), Triton runs in its interpreter.
"""

import pytest
import torch

from bench.gpu_checks import PATHS, head_inputs, head_problems
from mmfast.ops import linear_logprob
from mmfast.ops.head import backends
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.oracles.logprob import linear_logprob as oracle
from mmfast.ops.selective import selective_logprob
from tests.kernels.emulation import emulated

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = {"use_bias": True, "softcap": 8.0, "temperature": 0.7, "return_entropy": True, "entropy_grad": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "all options"])
@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_path(
    backend: str, path: str, options: dict, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    if backend == "triton":
        pytest.importorskip("triton")
    elif DEVICE.type == "cpu":
        module = emulated()
        monkeypatch.setitem(backends.FOLDS, "torch", lambda: NativeFolds("cuda", module))
        backend = "torch"
    given = head_inputs((12, 40, 203), dtype, DEVICE)
    assert not head_problems(given, path, options, PATHS[path][2], backend, path, DEVICE)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_selective_reads_the_logits_where_they_are(
    backend: str, dtype: torch.dtype, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    elif DEVICE.type == "cpu":
        module = emulated()
        monkeypatch.setitem(backends.FOLDS, "torch", lambda: NativeFolds("cuda", module))
        backend = "torch"
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 205, generator=g)).to(DEVICE, dtype)
    targets = torch.randint(0, 205, (6,), generator=g).to(DEVICE)
    upstream = torch.randn(6, generator=g).to(DEVICE)
    wide = logits.double().requires_grad_()
    want = torch.log_softmax(wide / 0.7, -1).gather(-1, targets[:, None])[:, 0]
    (want_grad,) = torch.autograd.grad((want * upstream).sum(), wide)
    leaf = logits.clone().requires_grad_()
    given = leaf * 1 if inplace else leaf  # a leaf's own storage is nobody's to overwrite
    got = selective_logprob(given, targets, temperature=0.7, inplace_backward=inplace, backend=backend)
    (grad,) = torch.autograd.grad((got * upstream).sum(), leaf)
    assert (got - want).abs().max() < 1e-4
    assert (grad.double() - want_grad).abs().max() < 8 * torch.finfo(dtype).eps + 1e-6


def test_fused_by_name() -> None:
    pytest.importorskip("triton")
    given = head_inputs((40, 32, 300), torch.bfloat16, DEVICE)
    arguments = {name: given[name] for name in ("hidden", "weight", "targets", "rows", "bias")}
    want = oracle(**arguments, softcap=5.0)["logp"]
    got = linear_logprob(**arguments, softcap=5.0, backend="triton-fused")
    assert got.dtype == torch.float32 and (got.double() - want).abs().max() < 1e-4


def test_fused_refuses_what_it_cannot_do() -> None:
    pytest.importorskip("triton")
    hidden, weight = torch.randn(3, 8, device=DEVICE), torch.randn(5, 8, device=DEVICE)
    targets = torch.tensor([0, 4, 2], device=DEVICE)
    with pytest.raises(ValueError, match="return_entropy"):
        linear_logprob(hidden, weight, targets, return_entropy=True, backend="triton-fused")
    with pytest.raises(ValueError, match="no gradient"):
        linear_logprob(hidden.requires_grad_(), weight, targets, backend="triton-fused")
    with torch.no_grad():
        assert linear_logprob(hidden, weight, targets, backend="triton-fused").shape == (3,)
    with pytest.raises(ValueError, match="fp32, bf16 or fp16"):
        linear_logprob(hidden.detach().double(), weight.double(), targets, backend="triton-fused")
