"""preference_loss in CUDA (emulated where there is no device) and Triton (interpreted) against plain torch in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmfast.ops.kinds import DIVERGENCES, DIVERGING, KINDS, REFERENCE_FREE, SORTING
from mmfast.ops.preference import preference_torch
from mmfast.ops.preference_kernels import PreferenceTensors, preference_native, preference_triton
from mmfast.ops.preference_math import make_spec
from tests.kernels.emulation import emulated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = [kind for kind in KINDS if kind not in SORTING]
EXTRA: dict[str, dict[str, float]] = {
    "robust": {"label_smoothing": 0.2}, "exo_pair": {"label_smoothing": 0.1}, "discopop": {"tau": 0.3},
    "simpo": {"simpo_margin": 0.4, "label_smoothing": 0.1},
}  # fmt: skip


def arguments(kind: str, dtype: torch.dtype = torch.float64, lengths: tuple[int, ...] = (3, 1, 40, 2, 5)) -> list[Any]:
    """Entries that share log-probs, pairs that share entries."""
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    count = sum(lengths)
    responses = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    pairs = torch.tensor([[0, 1], [2, 1], [4, 3], [0, 4], [3, 0], [1, 2]])
    index = torch.randint(0, max(count * 2 // 3, 1), (count,), generator=g)
    ref = None if kind in REFERENCE_FREE else -3 * make(count)
    return [-3 * make(count), index, make(count) + 0.5, ref, responses, pairs, make(6) + 0.2, None]


def run(backend: str, given: list[Any], spec: Any, want_grad: bool = True) -> tuple[Tensor, ...]:
    moved = PreferenceTensors(*(None if t is None else t.to(DEVICE) for t in given))
    if backend == "triton":
        pytest.importorskip("triton")
        out = preference_triton(moved, spec, want_grad)
    else:
        out = preference_native("cuda", moved, spec, want_grad, None if DEVICE == "cuda" else emulated())
    return tuple(t.cpu() for t in out)


def check(backend: str, given: list[Any], spec: Any, tolerance: float = 1e-10) -> None:
    wide = [t.double() if t is not None and t.is_floating_point() else t for t in given]
    for got, want in zip(run(backend, given, spec), preference_torch(PreferenceTensors(*wide), spec), strict=True):
        assert got.dtype == given[0].dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def spec_of(kind: str, given: list[Any], **more: Any) -> Any:
    return make_spec(
        kind, pairs=given[5].shape[0], has_reference=given[3] is not None, has_delta=given[7] is not None,
        **(EXTRA.get(kind, {}) | more),
    )  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_kind(backend: str, kind: str) -> None:
    given = arguments(kind)
    if kind == "bco_pair":
        given[7] = torch.tensor(0.3, dtype=torch.float64)
    check(backend, given, spec_of(kind, given))
    check(backend, given, spec_of(kind, given, average=True, sft_weight=0.3, pair_count=17.0))
    if kind not in ("orpo", "sft"):
        check(backend, given, spec_of(kind, given, ld_alpha=0.4, sft_weight=0.3, sft_average=True))


@pytest.mark.parametrize("divergence", DIVERGENCES[1:])
@pytest.mark.parametrize("kind", DIVERGING)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_divergences(backend: str, kind: str, divergence: str) -> None:
    given = arguments(kind)
    alpha = {"f_alpha": 0.6} if divergence == "alpha_divergence" else {}
    check(backend, given, spec_of(kind, given, f_divergence=divergence, **alpha))


@pytest.mark.parametrize("missing", [1, 2, 6])  # index, weights, pair_weights
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_optional_tensors(backend: str, missing: int) -> None:
    given = arguments("sigmoid")
    given[missing] = None
    check(backend, given, spec_of("sigmoid", given))


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_fp32_and_entries_of_no_tokens(backend: str) -> None:
    given = arguments("sigmoid", torch.float32, lengths=(3, 0, 7, 2, 5))
    check(backend, given, spec_of("sigmoid", given), 2e-5)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_long_lists_are_summed_in_order(backend: str) -> None:
    """150 tokens on one log-prob, more tokens of an entry than are in flight at once, an entry in 100 pairs."""
    given = arguments("sigmoid", torch.float32, lengths=(300, 30, 30))
    given[1][::2] = 5
    pairs = 100 if backend == "cuda" else 10  # the interpreter is slow
    given[5] = torch.tensor([[0, 1], [2, 0]]).repeat(pairs // 2, 1)
    given[6] = torch.rand(pairs, generator=torch.Generator().manual_seed(1))
    spec = spec_of("sigmoid", given)
    check(backend, given, spec, 2e-5)
    first, again = run(backend, given, spec), run(backend, given, spec)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_no_pairs_and_no_gradient(backend: str) -> None:
    given = arguments("sigmoid")
    loss, _, grad = run(backend, given, spec_of("sigmoid", given), want_grad=False)
    assert grad.numel() == 0 and loss == run(backend, given, spec_of("sigmoid", given))[0]
    given[5], given[6] = given[5][:0], given[6][:0]
    loss, metrics, grad = run(backend, given, spec_of("sigmoid", given))
    assert loss == 0 and metrics.shape == (6, 0) and torch.equal(grad, torch.zeros_like(given[0]))


class NoHost(TorchDispatchMode):
    """Fails where a call makes a tensor of host values, pins memory or reads a value back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("lift_fresh", "_pin_memory", "_local_scalar_dense", "_to_copy") or self.same_device(kwargs)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def same_device(kwargs: Any) -> bool:
        return bool(kwargs) and set(kwargs) <= {"dtype"}


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_call_can_be_captured(backend: str, average: bool) -> None:
    """A CUDA graph replays the call: what one call read from the host is gone or another's by then, and pinning memory
    during a capture is an error."""
    given = arguments("sigmoid")
    spec = spec_of("sigmoid", given, average=average, sft_weight=0.3)
    want = run(backend, given, spec)
    moved = PreferenceTensors(*(None if t is None else t.to(DEVICE) for t in given))
    module = None if DEVICE == "cuda" or backend == "triton" else emulated()
    with NoHost():
        if backend == "triton":
            got = preference_triton(moved, spec, True)
        else:
            got = preference_native("cuda", moved, spec, True, module)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
