"""The fully fused forward against fp64, alone and as backend="triton-fused": ragged shapes, repeated rows, shifted
logits, confident targets."""

import math

import pytest
import torch

from mmfast.ops import linear_logprob
from mmfast.ops.oracles.logprob import linear_logprob as oracle_op
from tests.ops.logprob_cases import make

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(hidden, weight, targets, bias=None, softcap=None, temperature=1.0):
    z = hidden.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return (z / temperature).log_softmax(1).gather(1, targets[:, None])[:, 0]


def run(hidden, weight, targets, bias=None, softcap=None, temperature=1.0):
    from mmfast.kernels.logprob_fused import fused_logprob

    moved = (None if t is None else t.to(DEVICE) for t in (hidden, weight, targets, bias))
    return fused_logprob(*moved, softcap, temperature).cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "U, V, D, extras",
    [
        (130, 300, 40, {}),
        (140, 1700, 33, {"bias": 1.0, "softcap": 5.0, "temperature": 0.7}),
        (2200, 140, 8, {}),
        (1, 1, 8, {}),
    ],
)
def test_against_fp64(U: int, V: int, D: int, extras: dict[str, float], dtype: torch.dtype) -> None:
    """More row blocks than a group, more tiles than programs, widths that no descriptor takes."""
    g = torch.Generator().manual_seed(U)
    hidden = torch.randn(U, 2 * D, generator=g).to(dtype)[:, :D]  # rows are not contiguous
    weight = (torch.randn(V, D, generator=g) / D**0.5).to(dtype)
    targets = torch.randint(0, V, (U,), generator=g)
    bias = torch.randn(V, generator=g).to(dtype) if "bias" in extras else None
    given = (hidden, weight, targets, bias, extras.get("softcap"), extras.get("temperature", 1.0))
    assert (run(*given) - oracle(*given)).abs().max() < 2e-5


@pytest.mark.parametrize("shift", [-4096.0, 4096.0])
def test_a_common_shift_changes_nothing(shift: float) -> None:
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(20, 16, generator=g).half(), torch.randn(500, 16, generator=g).half()
    targets = torch.randint(0, 500, (20,), generator=g)
    z = (hidden.double() @ weight.double().T).float() + shift  # the logits' own rounding at 2^12 is not the kernel's
    want = z.double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    logp = run(hidden, weight, targets, torch.full((500,), shift))
    assert (logp - want).abs().max() < 5e-3  # half a unit in the last place of 4096 is 2.4e-4, a row has two


@pytest.mark.parametrize("p", [0.5, 0.99, 0.9999, 1 - 1e-9])
def test_confident_targets(p: float) -> None:
    """log p where p rounds to 1 in fp32 too."""
    V = 1000
    bias = torch.zeros(V)
    bias[7] = math.log(p / (1 - p) * (V - 1))
    logp = run(torch.zeros(1, 16).half(), torch.zeros(V, 16).half(), torch.tensor([7]), bias)
    assert logp.item() == pytest.approx(math.log(p), rel=1e-5)


def test_no_rows() -> None:
    assert run(torch.zeros(0, 8).half(), torch.zeros(5, 8).half(), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_by_name() -> None:
    with torch.device(DEVICE):
        case = make(40, 32, 300, 40, torch.bfloat16, bias=True, softcap=5.0)
        want = oracle_op(**case.arguments(), **case.options)["logp"]
        with torch.no_grad():
            got = linear_logprob(**case.arguments(), **case.options, backend="triton-fused")
    assert got.dtype == torch.float32 and (got.double() - want).abs().max() < 1e-4


def test_it_refuses_what_it_cannot_do() -> None:
    hidden, weight = torch.randn(3, 8, device=DEVICE).half(), torch.randn(5, 8, device=DEVICE).half()
    targets = torch.tensor([0, 4, 2], device=DEVICE)
    with pytest.raises(ValueError, match="return_entropy"):
        linear_logprob(hidden, weight, targets, return_entropy=True, backend="triton-fused")
    with pytest.raises(ValueError, match="no gradient"):
        linear_logprob(hidden.requires_grad_(), weight, targets, backend="triton-fused")
    with torch.no_grad():
        assert linear_logprob(hidden, weight, targets, backend="triton-fused").shape == (3,)
    with pytest.raises(ValueError, match=r"takes bf16 or fp16, not torch\.float32"):
        linear_logprob(hidden.detach().float(), weight.float(), targets, backend="triton-fused")
