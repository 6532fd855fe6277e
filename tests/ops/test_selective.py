"""selective_logprob against the oracle, with its in-place gradient."""

from __future__ import annotations

import pytest
import torch

from mmfast.ops import selective_logprob
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.oracles import logprob as reference
from tests.ops.logprob_cases import error
from tests.ops.places import generator

ALL = HeadSpec(entropy=True, squares=True, total=True, entropy_grad=True)
FLAGS = {"return_entropy": True, "return_logsumsq": True, "return_mean_logit": True, "return_top1": True}


def logits_of(dtype: torch.dtype, scored: int = 13, vocab: int = 517) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(3)
    logits = torch.randn(scored, vocab, generator=g, dtype=torch.float64) * 3
    targets = torch.randint(0, vocab, (scored,), generator=g)
    logits[0, targets[0]] = 20.0  # p_y = .99999
    return logits.to(dtype), targets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "temperature": 1.7}], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_against_the_oracle(backend: str, dtype: torch.dtype, entropy_grad: bool, options: dict, inplace: bool) -> None:
    values, targets = logits_of(dtype)
    leaf, wide = values.clone().requires_grad_(), values.double().requires_grad_()
    made = leaf * 1  # not a leaf, as a trainer's logits are
    ours = selective_logprob(
        made, targets, entropy_grad=entropy_grad, inplace_backward=inplace, backend=backend, **FLAGS, **options
    )
    truth = list(reference.selective_logprob(wide, targets, **options).values())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for got, want in zip(ours, truth, strict=True):
        assert error(got, want) < tolerance
    g = generator(7)
    c, h = (torch.randn(len(targets), generator=g, dtype=torch.float64) for _ in range(2))
    h = h * entropy_grad
    got, want = (
        torch.autograd.grad((o[0] * c.to(o[0].dtype)).sum() + (o[1] * h.to(o[1].dtype)).sum(), x)[0]
        for o, x in ((ours, leaf), (truth, wide))
    )
    assert got.dtype == dtype
    assert error(got, want) < {torch.bfloat16: 4e-3, torch.float16: 1e-3}.get(dtype, tolerance)
    if dtype != torch.float16:  # whose smallest numbers are no finer than the confident row's gradient
        assert error(got[0], want[0]) < (4e-3 if dtype == torch.bfloat16 else 1e-3)
    if inplace:
        assert torch.equal(made.detach(), got)
    else:
        assert torch.equal(made.detach(), values)


def test_row_blocks_and_layouts(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmfast.ops import selective

    monkeypatch.setitem(selective.TILE_BUDGET, device.type, 5 * 4 * 517)  # five rows at a time
    values, targets = logits_of(torch.float32)
    for leaf in (values.clone(), values.T.contiguous().T, torch.cat([values, values], 1)[:, :517]):
        leaf = leaf.detach().requires_grad_()
        logp = selective_logprob(leaf, targets, backend=backend)
        want = torch.log_softmax(leaf.double(), -1).gather(1, targets[:, None])[:, 0]
        assert error(logp, want) < 1e-5
        (got,), (true,) = (torch.autograd.grad(x.square().sum(), leaf) for x in (logp, want))
        assert error(got, true) < 1e-5


def test_edges(backend: str) -> None:
    empty = torch.empty(0, 9, requires_grad=True)
    logp = selective_logprob(empty, torch.empty(0, dtype=torch.int64), backend=backend)
    assert logp.grad_fn is not None
    logp.sum().backward()
    one = torch.randn(3, 1, requires_grad=True)
    logp = selective_logprob(one, torch.zeros(3, dtype=torch.int64), backend=backend)
    assert logp.tolist() == [0, 0, 0]
    logp.sum().backward()
    assert one.grad is not None and one.grad.count_nonzero() == 0
    shifted = torch.randn(4, 300) + 4096
    got = selective_logprob(shifted, torch.arange(4), backend=backend)
    assert (got - torch.log_softmax(shifted.double(), -1)[torch.arange(4), torch.arange(4)]).abs().max() < 1e-5


@pytest.mark.usefixtures("device")
def test_gradcheck_opcheck_compile() -> None:
    values, targets = logits_of(torch.float64, 3, 11)
    values.requires_grad_()

    def both_outputs(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return selective_logprob(x, targets, softcap=9.0, return_entropy=True, entropy_grad=True)

    assert torch.autograd.gradcheck(both_outputs, (values,))
    arguments = (values.detach().float().requires_grad_(), targets, ALL.flat(), False, "")
    torch.library.opcheck(torch.ops.mmfast.selective_logprob.default, arguments)
    compiled = torch.compile(both_outputs, fullgraph=True, backend="aot_eager")
    got, want = compiled(values), both_outputs(values)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    (a,), (b,) = (torch.autograd.grad(x[0].sum() + x[1].sum(), values) for x in (got, want))
    assert torch.equal(a, b)


@pytest.mark.usefixtures("device")
def test_in_place_is_guarded() -> None:
    values, targets = logits_of(torch.float32)
    leaf = values.requires_grad_()
    with pytest.raises(ValueError, match="would overwrite logits"):
        selective_logprob(leaf, targets, inplace_backward=True)
    logp = selective_logprob(leaf * 1, targets, inplace_backward=True)
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


@pytest.mark.usefixtures("device")
def test_in_place_compiles() -> None:
    values, targets = logits_of(torch.float32)
    leaf = values.requires_grad_()
    made, plain = leaf * 2, selective_logprob(leaf * 2, targets)
    run = torch.compile(
        lambda x: selective_logprob(x, targets, inplace_backward=True), fullgraph=True, backend="aot_eager"
    )
    (want,), (got,) = (torch.autograd.grad(logp.sum(), leaf) for logp in (plain, run(made)))
    assert torch.equal(got, want) and torch.equal(2 * made.detach(), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "logits must have shape"),
        ({"logits": torch.zeros(2, 0)}, "logits has no columns"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "targets must have shape"),
        ({"targets": torch.tensor([0, 5])}, "targets holds 5, outside"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"entropy_grad": True}, "needs return_entropy"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_logprob(**{"logits": torch.zeros(2, 5), "targets": torch.tensor([0, 1]), **change})
