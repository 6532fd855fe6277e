"""The formulas of every kind, in torch, Triton (interpreted, or on a GPU) and C++, on thousands of random pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmfast.kernels import preference_terms
from mmfast.ops.kinds import DIVERGENCES, DIVERGING, KINDS, REFERENCE_FREE, SORTING
from mmfast.ops.oracles.preference import pair_loss
from mmfast.ops.preference import preference_raw
from mmfast.ops.preference_kernels import PreferenceTensors
from mmfast.ops.preference_math import PreferenceSpec, make_spec
from tests.kernels.test_preference import EXTRA

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = 4096
CASES = [(kind, "reverse_kl") for kind in KINDS if kind not in SORTING]
CASES += [(kind, divergence) for kind in DIVERGING for divergence in DIVERGENCES[1:]]


def spec_of(kind: str, divergence: str) -> PreferenceSpec:
    more = {"f_alpha": 0.6} if divergence == "alpha_divergence" else {}
    return make_spec(
        kind, beta=0.7, pairs=PAIRS, has_reference=kind not in REFERENCE_FREE, has_delta=kind == "bco_pair",
        f_divergence=divergence, **EXTRA.get(kind, {}), **more,
    )  # fmt: skip


def pairs_of(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-ratios from a millionth of a nat to some hundred, of both signs (log-probs where there is no reference)."""
    g = torch.Generator().manual_seed(len(kind))
    size = 10 ** (8.5 * torch.rand(2, PAIRS, generator=g, dtype=torch.float64) - 6)
    sign = torch.where(torch.rand(2, PAIRS, generator=g) < 0.5, 1.0, -1.0)
    a_c, a_r = -size if kind in REFERENCE_FREE else size * sign
    n_c, n_r = 0.5 + 9 * torch.rand(2, PAIRS, generator=g, dtype=torch.float64)
    return a_c, a_r, n_c, n_r


def in_torch(spec: PreferenceSpec, *given: Tensor) -> tuple[Tensor, ...]:
    numbers, *kind = spec.formula()
    return preference_terms.pair_terms(*given, 0.3, *numbers, *kind)


def close(got: Tensor, want: Tensor, name: str) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("kind,divergence", CASES)
def test_torch_and_the_oracle(kind: str, divergence: str) -> None:
    """The papers' formulas with autograd, where they do not overflow."""
    spec = spec_of(kind, divergence)
    a_c, a_r, n_c, n_r = pairs_of(kind)
    most = 30 if divergence == "reverse_kl" else 5  # theirs are of e^a
    low, high = -most, -1e-3 if kind == "orpo" else most
    keep = (torch.minimum(a_c, a_r) > low) & (torch.maximum(a_c, a_r) < high)
    if kind == "orpo":
        keep &= torch.maximum(a_c / n_c, a_r / n_r) < -1e-3
    given = [x[keep][:300].requires_grad_() for x in (a_c, a_r, n_c, n_r)]
    assert given[0].numel() == 300
    value = torch.stack([pair_loss(spec, *each, 0.3) for each in zip(*given, strict=True)])
    want = (value, *torch.autograd.grad(value.sum(), given[:2], allow_unused=True, materialize_grads=True))
    for got, expected, name in zip(in_torch(spec, *given), want, ("value", "d_c", "d_r"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind,divergence", CASES)
def test_torch_and_cpp(kind: str, divergence: str) -> None:
    """Entries of one token, which weighs n: S = n * (a / n)."""
    spec = spec_of(kind, divergence)
    a_c, a_r, n_c, n_r = pairs_of(kind)
    n = torch.stack([n_c, n_r], 1).view(-1)
    logps = torch.stack([a_c, a_r], 1).view(-1) / n
    ref = None if kind in REFERENCE_FREE else torch.zeros_like(logps)
    delta = torch.tensor(0.3, dtype=torch.float64) if kind == "bco_pair" else None
    entries = torch.arange(2 * PAIRS)
    bounds = torch.arange(2 * PAIRS + 1, dtype=torch.int32)
    tensors = PreferenceTensors(logps, None, n, ref, bounds, entries.view(-1, 2), None, delta)
    _, metrics, grad = preference_raw(tensors, spec, True, "cpu")
    d_c, d_r = (grad / n).view(-1, 2).unbind(1)
    for got, want, name in zip((metrics[0], d_c * PAIRS, d_r * PAIRS), in_torch(spec, a_c, a_r, n_c, n_r),
                               ("value", "d_c", "d_r"), strict=True):  # fmt: skip
        close(got, want, name)


@pytest.mark.parametrize("kind,divergence", CASES)
def test_torch_and_triton(kind: str, divergence: str) -> None:
    pytest.importorskip("triton")
    from tests.kernels.terms_kernel import terms_kernel

    spec = spec_of(kind, divergence)
    numbers, name, divergence, per_token = spec.formula()
    given = [x.to(DEVICE) for x in pairs_of(kind)]
    out = [torch.empty_like(given[0]) for _ in range(3)]
    constants = {"KIND": name, "DIVERGENCE": divergence, "PER_TOKEN": per_token, "N": PAIRS}
    terms_kernel[(1,)](*given, *out, 0.3, *numbers, **constants)
    for got, want, label in zip(out, in_torch(spec, *pairs_of(kind)), ("value", "d_c", "d_r"), strict=True):
        # exp(x) - 1 and log(1 + x) without functions of their own: what is tiny is right to fp64's epsilon only
        torch.testing.assert_close(got.cpu(), want, rtol=1e-8, atol=1e-9, msg=lambda m, label=label: f"{label}: {m}")
