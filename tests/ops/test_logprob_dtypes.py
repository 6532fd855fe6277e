"""linear_logprob in fp32, bf16 and fp16: every backend against the fp64 value of the same inputs.

A backend must stay within 1e-4 nat a token, and its error below twice that of plain torch in the same dtype + 1e-4.
"""

from __future__ import annotations

import pytest
import torch

from tests.ops.logprob_cases import error, make, problems, run, run_reference
from tests.ops.test_logprob import PATHS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {  # tokens, dim, vocab, scored
    "aligned": (24, 64, 1024, 32),
    "ragged": (29, 51, 1003, 37),
    "one word": (1, 32, 1, 1),
}


def check(backend: str, sizes: tuple[int, ...], path: str, dtype: torch.dtype, **options: object) -> None:
    trained, entropy_grad, keep = PATHS[path]
    case = make(*sizes, dtype, trained=trained, confidence=(0.5, 0.99, 0.9999)[: sizes[3]], **options)
    assert not problems(case, backend, entropy_grad=entropy_grad, keep_budget=keep, tile_budget=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_against_fp64(backend: str, dtype: torch.dtype, path: str, shape: str) -> None:
    options = {"bias": True, "lora": True, "softcap": 20.0} if shape == "ragged" else {}
    check(backend, SHAPES[shape], path, dtype, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sizes", [(300, 256, 5000, 300), (64, 128, 32001, 64)], ids=str)
def test_error_at_the_sizes_of_a_gpu(backend: str, dtype: torch.dtype, path: str, sizes: tuple[int, ...]) -> None:
    check(backend, sizes, path, dtype)
    check(backend, sizes, path, dtype, bias=True, softcap=8.0, temperature=0.7)


@pytest.mark.parametrize("trained", [False, True])
def test_confident_tokens_keep_their_gradient(backend: str, trained: bool) -> None:
    """p_y from .5 to .999999 in bf16: each row's own gradient is right, not only the largest row's."""
    case = make(
        6, 64, 1000, 6, torch.bfloat16, rows=False, trained=trained,
        confidence=(0.5, 0.9, 0.99, 0.999, 0.9999, 0.999999),
    )  # fmt: skip
    truth, true_grads = run_reference(case.clone(torch.float64))
    ours, grads = run(case, backend=backend)
    assert truth["logp"].exp().max() > 0.9999
    for row in range(6):
        assert error(grads[0][row], true_grads[0][row]) < 2e-2
        assert abs(float(ours["logp"][row].detach() / truth["logp"][row].detach()) - 1) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [-300.0, 4096.0, -4096.0])
@pytest.mark.parametrize("trained", [False, True])
def test_shifted_logits(backend: str, dtype: torch.dtype, shift: float, trained: bool) -> None:
    """A common shift of all logits changes nothing, however large; the last tiles are far below the first, too."""
    case = make(9, 32, 700, 9, dtype, rows=False, trained=trained, bias=True)
    with torch.no_grad():
        case.tensors["bias"] += shift
        case.tensors["bias"][300:] -= 200.0  # beyond exp's range in fp32
    case.targets[:4] = torch.tensor([0, 299, 300, 699])
    truth, true_grads = run_reference(case.clone(torch.float64))
    ours, grads = run(case, backend=backend, tile_budget=1)
    # one unit in the last place of a logit of 4096 is 5e-4 in fp32
    assert (ours["logp"] - truth["logp"]).abs().max() < 1e-4 + 4e-7 * abs(shift) * 4
    for got, want in zip(grads, true_grads, strict=True):
        assert torch.isfinite(got).all()
        assert error(got, want) < (2e-2 if dtype == torch.bfloat16 else 5e-3)


@pytest.mark.parametrize("trained", [False, True])
def test_a_maximum_that_rises_by_hundreds(backend: str, trained: bool) -> None:
    """The running maximum moves in every tile, and the target of some rows lies in an early, vanished one."""
    case = make(9, 32, 1200, 9, torch.float32, rows=False, trained=trained, bias=True)
    with torch.no_grad():
        case.tensors["bias"] += torch.arange(1200) // 256 * 60.0
    case.targets[:4] = torch.tensor([0, 255, 256, 1199])
    truth, true_grads = run_reference(case.clone(torch.float64))
    ours, grads = run(case, backend=backend, tile_budget=1)
    assert error(ours["logp"], truth["logp"]) < 1e-6
    for got, want in zip(grads, true_grads, strict=True):
        assert error(got, want) < 1e-4


def test_minus_infinity_in_the_bias(backend: str) -> None:
    """Padded vocabularies are masked so; whole tiles may be."""
    case = make(5, 8, 900, 5, torch.float32, rows=False, trained=True, bias=True)
    with torch.no_grad():
        case.tensors["bias"][:300] = -torch.inf
        case.tensors["bias"][850:] = -torch.inf
    case.targets.copy_(torch.tensor([300, 400, 500, 849, 600]))
    for keep in (None, 0):
        for entropy_grad in (False, True):
            truth, true_grads = run_reference(case.clone(torch.float64), entropy_grad=entropy_grad)
            ours, grads = run(case, backend=backend, tile_budget=1, keep_budget=keep, entropy_grad=entropy_grad)
            assert error(ours["logp"], truth["logp"]) < 1e-6
            assert error(ours["entropy"], truth["entropy"]) < 1e-5
            for got, want in zip(grads, true_grads, strict=True):
                assert torch.isfinite(got).all()
                if torch.isfinite(want).all():  # autograd's own 0 * inf in the oracle's entropy
                    assert error(got, want) < 1e-5


def test_nan_stays_nan(backend: str) -> None:
    """A non-finite step must be seen by the trainer."""
    case = make(3, 8, 600, 3, torch.float32, rows=False)
    with torch.no_grad():
        case.tensors["hidden"][1, 2] = torch.nan
    ours, _ = run(case, backend=backend, tile_budget=1)
    assert ours["logp"].isnan().tolist() == [False, True, False]
