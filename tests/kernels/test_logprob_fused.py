"""The fully fused forward against fp64, alone and as backend="triton-fused": ragged shapes, repeated rows, shifted
logits, confident targets."""

import pytest
import torch

from mmfast.ops import linear_logprob
from mmfast.ops.oracles.logprob import linear_logprob as oracle_op
from tests.ops.logprob_cases import make

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(hidden, weight, targets, rows, bias, softcap, temperature):
    z = hidden.double()[rows] @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    z = z / temperature
    return z.log_softmax(1).gather(1, targets[:, None])[:, 0], z.logsumexp(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "T, U, V, D, extras",
    [(130, 130, 300, 40, {}), (50, 140, 700, 33, {"bias": 1.0, "softcap": 5.0, "temperature": 0.7}), (3, 1, 1, 8, {})],
)
def test_against_fp64(T: int, U: int, V: int, D: int, extras: dict[str, float], dtype: torch.dtype) -> None:
    from mmfast.kernels.logprob_fused import fused_logprob

    g = torch.Generator().manual_seed(U)
    hidden = torch.randn(T, 2 * D, generator=g).to(dtype)[:, :D]  # rows are not contiguous
    weight = (torch.randn(V, D, generator=g) / D**0.5).to(dtype)
    rows = torch.arange(U) if T == U else torch.randint(0, T, (U,), generator=g)
    targets = torch.randint(0, V, (U,), generator=g)
    bias = torch.randn(V, generator=g).to(dtype) if "bias" in extras else None
    softcap, temperature = extras.get("softcap"), extras.get("temperature", 1.0)
    want, want_lse = oracle(hidden, weight, targets, rows, bias, softcap, temperature)
    to = lambda t: None if t is None else t.to(DEVICE)  # noqa: E731
    given_rows = None if T == U else rows
    logp, lse = fused_logprob(to(hidden), to(weight), to(targets), to(given_rows), to(bias), softcap, temperature)
    assert (logp.cpu() - want).abs().max() < 2e-5
    assert (lse.cpu() - want_lse).abs().max() < 2e-5


@pytest.mark.parametrize("shift", [-4096.0, 4096.0])
def test_a_common_shift_changes_nothing(shift: float) -> None:
    from mmfast.kernels.logprob_fused import fused_logprob

    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(20, 16, generator=g), torch.randn(500, 16, generator=g)
    targets = torch.randint(0, 500, (20,), generator=g)
    bias = torch.full((500,), shift)
    z = (hidden.double() @ weight.double().T).float() + bias  # the logits' own rounding at 2^12 is not the kernel's
    want = z.double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    logp, _ = fused_logprob(*(t.to(DEVICE) for t in (hidden, weight, targets)), bias=bias.to(DEVICE))
    assert (logp.cpu() - want).abs().max() < 5e-3  # half a unit in the last place of 4096 is 2.4e-4, a row has two


@pytest.mark.parametrize("p", [0.5, 0.99, 0.9999])
def test_confident_targets(p: float) -> None:
    from mmfast.kernels.logprob_fused import fused_logprob

    V = 1000
    hidden = torch.ones(1, 16)
    weight = torch.zeros(V, 16)
    weight[7] = torch.log(torch.tensor(p / (1 - p) * (V - 1))) / 16
    want, _ = oracle(hidden, weight, torch.tensor([7]), torch.tensor([0]), None, None, 1.0)
    logp, _ = fused_logprob(*(t.to(DEVICE) for t in (hidden, weight, torch.tensor([7]))))
    assert (logp.cpu() - want).abs().max() < 2e-6


def test_no_rows() -> None:
    from mmfast.kernels.logprob_fused import fused_logprob

    hidden, weight = torch.zeros(4, 8, device=DEVICE), torch.zeros(5, 8, device=DEVICE)
    logp, lse = fused_logprob(hidden, weight, torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert logp.shape == lse.shape == (0,)


def test_by_name() -> None:
    with torch.device(DEVICE):
        case = make(40, 32, 300, 40, torch.bfloat16, bias=True, softcap=5.0)
        want = oracle_op(**case.arguments(), **case.options)["logp"]
        with torch.no_grad():
            got = linear_logprob(**case.arguments(), **case.options, backend="triton-fused")
    assert got.dtype == torch.float32 and (got.double() - want).abs().max() < 1e-4


def test_it_refuses_what_it_cannot_do() -> None:
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
