"""linear_logprob as a citizen: edges, argument errors, autocast, torch.compile, determinism, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmfast.ops import linear_logprob
from mmfast.ops.head import tiles as algorithm
from tests.ops.logprob_cases import Case, error, make, run, run_reference


@pytest.mark.parametrize("trained", [False, True])
def test_no_rows_keep_their_grad_fn(backend: str, trained: bool) -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    weight = torch.randn(9, 4, requires_grad=trained)
    logp = linear_logprob(hidden, weight, torch.empty(0, dtype=torch.int64), backend=backend)
    assert logp.shape == (0,) and logp.grad_fn is not None
    logp.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, 4)
    if trained:
        assert weight.grad is not None and weight.grad.count_nonzero() == 0


@pytest.mark.parametrize(("scored", "vocab"), [(1, 1), (3, 1), (1, 2), (1, 300), (2, 257)])
def test_smallest_shapes(backend: str, scored: int, vocab: int) -> None:
    for keep in (None, 0):
        case = make(scored, 5, vocab, scored, rows=False, trained=True)
        ours, grads = run(case, backend=backend, keep_budget=keep, entropy_grad=keep == 0)
        truth, true_grads = run_reference(case, entropy_grad=keep == 0)
        for name, value in ours.items():
            assert torch.allclose(value.double(), truth[name].double(), atol=1e-12), name
        for got, want in zip(grads, true_grads, strict=True):
            assert torch.allclose(got, want, atol=1e-12)


def test_layouts(backend: str) -> None:
    """Non-contiguous hidden, weight and targets; targets that repeat."""
    for dtype in (torch.float32, torch.bfloat16):
        wide = torch.randn(6, 20, dtype=dtype)
        hidden = wide[:, ::2].detach().requires_grad_()
        weight = torch.randn(10, 333, dtype=dtype).T.detach().requires_grad_()
        targets = torch.tensor([[3, 1], [3, 2], [3, 9], [300, 7], [332, 5], [332, 5]])[:, 0]
        got = linear_logprob(hidden, weight, targets, backend=backend)
        want = torch.log_softmax(hidden.double() @ weight.double().T, -1)[torch.arange(6), targets]
        assert (got - want).abs().max() < 1e-4
        gradients = [torch.autograd.grad(x.sum(), (hidden, weight)) for x in (got, want)]
        for a, b in zip(*gradients, strict=True):
            assert error(a, b) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_tied_embeddings(backend: str) -> None:
    """The weight is also the embedding: both gradients arrive."""
    table = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    tokens, targets = torch.tensor([4, 7, 4, 9]), torch.tensor([7, 4, 9, 0])
    ours = linear_logprob(table[tokens].tanh(), table, targets, backend=backend)
    truth = torch.log_softmax(table[tokens].tanh() @ table.T, -1)[torch.arange(4), targets]
    c = torch.randn(4, dtype=torch.float64)
    (a,), (b,) = (torch.autograd.grad((x * c).sum(), table) for x in (ours, truth))
    assert error(a, b) < 1e-12


def test_row_blocks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "ROW_BLOCK", 4)
    for keep, entropy_grad in ((None, False), (0, False), (None, True)):
        case = make(bias=True, lora=True, trained=True)
        ours, grads = run(case, backend=backend, keep_budget=keep, entropy_grad=entropy_grad)
        truth, true_grads = run_reference(case, entropy_grad=entropy_grad)
        for name, value in ours.items():
            assert error(value, truth[name]) < 1e-12, name
        for got, want in zip(grads, true_grads, strict=True):
            assert error(got, want) < 1e-11


@pytest.mark.usefixtures("device")
def test_outputs_carry_no_gradient_unless_asked() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    y = torch.tensor([1, 2, 3])
    logp, entropy, squares, mean, top1 = linear_logprob(
        hidden, weight, y, return_entropy=True, return_logsumsq=True, return_mean_logit=True, return_top1=True
    )
    assert logp.requires_grad and not any(t.requires_grad for t in (entropy, squares, mean, top1))
    _, entropy = linear_logprob(hidden, weight, y, return_entropy=True, entropy_grad=True)
    assert entropy.requires_grad
    (only,) = torch.autograd.grad(entropy.sum(), hidden)  # no gradient of logp at all
    p = torch.softmax(hidden @ weight.T, -1)
    (want,) = torch.autograd.grad(-(p * p.log()).sum(), hidden)
    assert error(only, want) < 1e-5
    with torch.no_grad():
        assert not linear_logprob(hidden, weight, y).requires_grad


@pytest.mark.usefixtures("device")
def test_twice_backward() -> None:
    case = make(trained=True)
    logp = linear_logprob(**case.arguments(), **case.options)
    first = torch.autograd.grad(logp.sum(), case.trained(), retain_graph=True)
    second = torch.autograd.grad(logp.sum(), case.trained(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_same_bits_every_time(backend: str) -> None:
    results = []
    for _ in range(3):
        case = make(20, 33, 1111, 50, torch.float32, trained=True, bias=True)
        ours, grads = run(case, backend=backend)
        results.append([*ours.values(), *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("trained", [False, True])
def test_autocast(backend: str, device: torch.device, trained: bool) -> None:
    """As F.linear does: fp32 parameters are multiplied in bf16, and their gradients come back in fp32."""
    case = make(8, 32, 500, 8, torch.float32, rows=False, trained=trained, bias=True, lora=True)
    with torch.autocast(device.type, torch.bfloat16):
        logp = linear_logprob(**case.arguments(), backend=backend)
    assert logp.dtype == torch.float32
    grads = torch.autograd.grad(logp.sum(), case.trained())
    low = make(8, 32, 500, 8, torch.float32, rows=False, trained=trained, bias=True, lora=True)
    cast = {k: t if k == "bias" else t.bfloat16() for k, t in low.tensors.items()}
    lora = (cast.pop("u"), cast.pop("b"))
    want = linear_logprob(**cast, targets=low.targets, lora=lora, backend=backend)
    assert torch.equal(logp, want)
    for a, b in zip(grads, torch.autograd.grad(want.sum(), low.trained()), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("trained", [False, True])
def test_compile_fullgraph(trained: bool) -> None:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        logp, entropy = linear_logprob(
            hidden * 2, weight, targets, rows=rows, return_entropy=True, entropy_grad=True, softcap=5.0
        )
        return (logp * 3).sum() + entropy.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for tokens, scored in ((5, 8), (6, 9)):  # the second shape makes the sizes dynamic
        case = make(tokens, 6, 300, scored, torch.float32, trained=trained)
        arguments = (*case.tensors.values(), case.targets, case.options["rows"])
        want, got = loss(*arguments), compiled(*arguments)
        assert torch.equal(got, want)
        pairs = zip(torch.autograd.grad(got, case.trained()), torch.autograd.grad(want, case.trained()), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


BAD = {
    "hidden must have shape": {"hidden": torch.zeros(2, 3, 4)},
    "hidden must be float32 or float64": {"hidden": torch.zeros(2, 4, dtype=torch.int32)},
    "hidden must be a tensor": {"hidden": [1.0]},
    "weight must have shape": {"weight": torch.zeros(9, 5)},
    "weight is bfloat16, but hidden is float32": {"weight": torch.zeros(9, 4, dtype=torch.bfloat16)},
    "weight is empty": {"weight": torch.zeros(0, 4)},
    "weight is on meta": {"weight": torch.zeros(9, 4, device="meta")},
    "targets must have shape": {"targets": torch.tensor([1])},
    "targets must be int64": {"targets": torch.tensor([1, 2], dtype=torch.int32)},
    "targets holds 9, outside": {"targets": torch.tensor([1, 9])},
    "targets holds -100, outside": {"targets": torch.tensor([1, -100])},
    "rows must have shape": {"rows": torch.tensor([1])},
    "rows holds 2, outside": {"rows": torch.tensor([1, 2])},
    "bias must have shape": {"bias": torch.zeros(8)},
    "lora.0. must have shape": {"lora": (torch.zeros(3, 2), torch.zeros(9, 2))},
    "lora.1. must have shape": {"lora": (torch.zeros(2, 2), torch.zeros(9, 3))},
    "softcap must be above 0": {"softcap": 0.0},
    "temperature must be above 0": {"temperature": -1.0},
    "needs return_entropy": {"entropy_grad": True},
    "backend 'cuda' was asked for": {"backend": "cuda"},
    "unknown backend": {"backend": "fast"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    good = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(9, 4), "targets": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{**good, **BAD[message]})


def test_dtensor_is_refused() -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import DeviceMesh, DTensor, Replicate

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        weight = DTensor.from_local(torch.zeros(9, 4), mesh, [Replicate()])
        with pytest.raises(ValueError, match="weight is a DTensor"):
            linear_logprob(torch.zeros(2, 4), weight, torch.tensor([1, 2]))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_more_than_2_to_31_elements() -> None:
    """kept holds U V > 2^31 entries; the last rows are checked."""
    scored, vocab = 36000, 60000
    hidden, weight = torch.randn(scored, 2), torch.randn(vocab, 2, requires_grad=True)
    targets = torch.randint(0, vocab, (scored,))
    logp = linear_logprob(hidden.bfloat16(), weight.bfloat16(), targets, keep_budget=1 << 40)
    want = torch.log_softmax(hidden[-8:].bfloat16().double() @ weight.detach().bfloat16().double().T, -1)
    assert (logp[-8:] - want.gather(1, targets[-8:, None])[:, 0]).abs().max() < 1e-4
    (dw,) = torch.autograd.grad(logp[-8:].sum(), weight)
    p = want.exp()
    truth = -(p.T @ hidden[-8:].bfloat16().double())
    truth.index_add_(0, targets[-8:], hidden[-8:].bfloat16().double())
    assert error(dw, truth) < 2e-2


@pytest.mark.parametrize(
    ("trained", "entropy_grad", "keep", "passes"),
    [
        (False, False, None, 2),
        (False, True, None, 3),
        (True, False, None, 3),
        (True, False, 0, 4),
        (True, True, None, 4),
    ],
)
def test_passes_and_memory(
    monkeypatch: pytest.MonkeyPatch, trained: bool, entropy_grad: bool, keep: int | None, passes: int
) -> None:
    """The table of docs/ops/linear_logprob.md: GEMM passes of 2 U D V flops, and nothing [U,V] but what is kept."""
    from mmfast.ops.head.backends import TorchFolds

    flops, sizes = [], []
    product, empty = TorchFolds.product, Tensor.new_empty

    def counted(self: TorchFolds, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        flops.append(a.shape[0] * a.shape[1] * b.shape[1])
        product(self, a, b, out, accumulate)

    def watched(self: Tensor, *size: object, **k: object) -> Tensor:
        made = empty(self, *size, **k)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(TorchFolds, "product", counted)
    monkeypatch.setattr(Tensor, "new_empty", watched)
    scored, dim, vocab = 12, 8, 1500
    case = make(scored, dim, vocab, scored, rows=False, trained=trained)
    run(case, entropy_grad=entropy_grad, keep_budget=keep, tile_budget=1, backend="torch")
    assert sum(flops) == passes * scored * dim * vocab
    kept = trained and not entropy_grad and keep is None
    assert max(sizes) == scored * (1536 if kept else 256)  # rows are a multiple of 64 numbers
    monkeypatch.undo()
    with torch.no_grad():
        monkeypatch.setattr(TorchFolds, "product", counted)
        flops.clear()
        run(Case({k: t.detach() for k, t in case.tensors.items()}, case.targets, case.options), backend="torch")
        assert sum(flops) == scored * dim * vocab
