"""linear_preference_loss: chunked over components of the pair graph, equal to the head and then the loss."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmfast.ops import linear_logprob, linear_preference_loss, preference_loss
from mmfast.ops import linear_preference as module
from mmfast.ops.linear_preference import chunks, pair_components
from tests.ops.logprob_cases import error
from tests.ops.places import generator

VOCAB, DIM = 300, 6


@dataclass
class Batch:
    """Seven entries in three components: a group of three with all pairs, two that share rows, two that are a pair."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    u: Tensor
    b: Tensor
    targets: Tensor
    options: dict

    def trained(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias, self.u, self.b) if t.requires_grad]

    def arguments(self) -> dict:
        head = {"bias": self.bias, "lora": (self.u, self.b), "softcap": 4.0, "temperature": 1.2}
        return {"hidden": self.hidden, "weight": self.weight, "targets": self.targets, **head}


def make(dtype: torch.dtype = torch.float64, frozen: tuple[str, ...] = ()) -> Batch:
    g = generator(5)
    lengths = [5, 3, 4, 6, 5, 2, 1]
    shared = 2  # entries 3 and 4 begin with the same two scored rows
    index, at = [], 0
    for e, n in enumerate(lengths):
        old = shared if e == 4 else 0
        index += [*range(at - lengths[3], at - lengths[3] + old), *range(at, at + n - old)]
        at += n - old
    rows, tokens = at, 17
    scored = len(index)

    def normal(name: str, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
        return values.requires_grad_(name not in frozen)

    options = {
        "rows": torch.randint(0, tokens, (rows,), generator=g),
        "index": torch.tensor(index),
        "weights": 1 + torch.rand(scored, generator=g, dtype=torch.float64),
        "ref_logps": -6 * torch.rand(scored, generator=g, dtype=torch.float64),
        "responses": torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        "pairs": torch.tensor([[5, 6], [0, 1], [0, 2], [1, 2], [4, 3]]),
        "pair_weights": torch.rand(5, generator=g, dtype=torch.float64),
        "pair_count": 11.0,
    }
    return Batch(
        normal("hidden", tokens, DIM), normal("weight", VOCAB, DIM), normal("bias", VOCAB), normal("u", tokens, 2),
        normal("b", VOCAB, 2), torch.randint(0, VOCAB, (rows,), generator=g), options,
    )  # fmt: skip


def separately(batch: Batch, backend: str = "torch", **objective: object) -> tuple:
    o = dict(batch.options)
    logps = linear_logprob(**batch.arguments(), rows=o.pop("rows"), backend=backend)
    out = preference_loss(logps, **o, **objective, backend=backend)  # type: ignore[arg-type]
    return out, torch.autograd.grad(3 * out.loss, batch.trained())


def together(batch: Batch, **options: object) -> tuple:
    out = linear_preference_loss(**batch.arguments(), **batch.options, **options)
    return out, torch.autograd.grad(3 * out.loss, batch.trained())


def bytes_of(rows: int, dtype: torch.dtype = torch.float64) -> int:
    return rows * VOCAB * dtype.itemsize


# rows of the components in order of their first row: 12 (entries 0 to 2), 9 (3 and 4), 3 (5 and 6)
BUDGETS = {"all kept": 10**9, "two chunks": bytes_of(12), "three chunks": bytes_of(11), "none fits": 0}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "objective", [{}, {"loss": "ipo", "sft_weight": 0.3}, {"loss": "sigmoid", "average": True, "beta": 2.0}], ids=str
)
def test_equals_head_then_loss(backend: str, budget: str, objective: dict) -> None:
    batch = make()
    out, grads = together(batch, keep_budget=BUDGETS[budget], tile_budget=1, backend=backend, **objective)
    truth, true_grads = separately(batch, **objective)
    for name, got, want in zip(out._fields, out, truth, strict=True):
        assert error(got, want) < 1e-12, name
    for got, want in zip(grads, true_grads, strict=True):
        assert error(got, want) < 1e-11


@pytest.mark.parametrize(
    "frozen", [("weight",), ("weight", "bias", "u", "b"), ("hidden", "u"), ("hidden", "weight", "u", "b")], ids=str
)
def test_partly_trained(backend: str, frozen: tuple[str, ...]) -> None:
    batch = make(frozen=frozen)
    _, grads = together(batch, keep_budget=bytes_of(12), backend=backend)
    _, true_grads = separately(batch)
    for got, want in zip(grads, true_grads, strict=True):
        assert error(got, want) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision(backend: str, dtype: torch.dtype) -> None:
    """Chunks add up in fp32: no worse than one GEMM over all rows."""
    batch, exact = make(dtype), make()
    for low, high in zip(batch.trained(), exact.trained(), strict=True):
        high.data.copy_(low.data)
    truth, true_grads = separately(exact)
    for budget in (bytes_of(12, dtype), 0):
        out, grads = together(batch, keep_budget=budget, backend=backend)
        assert out.loss.dtype == torch.float32
        assert error(out.loss, truth.loss) < 1e-5
        for got, want in zip(grads, true_grads, strict=True):
            assert got.dtype == dtype
            assert error(got, want) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_components_and_chunks() -> None:
    o = make().options
    found = pair_components(o["responses"], o["pairs"], o["index"], 24)
    assert found.tolist() == [0] * 12 + [1] * 9 + [2] * 3
    mixed = torch.tensor([0, 1, 0, 2, 1])
    order, bounds = chunks(mixed, 3)
    assert order.tolist() == [0, 2, 1, 4, 3] and bounds == [0, 2, 5]
    assert chunks(mixed, 1)[1] == [0, 2, 4, 5]  # a component is never cut
    # without an index, rows of no entry and entries in no pair stand alone
    alone = pair_components(torch.tensor([0, 2, 3, 4]), torch.tensor([[0, 2]]), None, 5)
    assert alone.tolist() == [0, 0, 1, 0, 2]


def test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GEMM passes where a component fits, four where it does not; nothing [U,V] beyond the budget."""
    from mmfast.ops.head.backends import TorchFolds

    flops, largest = [], []
    product = TorchFolds.product

    def counted(self: TorchFolds, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        flops.append(a.shape[0] * a.shape[1] * b.shape[1])
        product(self, a, b, out, accumulate)

    empty = Tensor.new_empty

    def watched(self: Tensor, *size: object, **k: object) -> Tensor:
        made = empty(self, *size, **k)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(TorchFolds, "product", counted)
    batch = make(frozen=("bias", "u", "b"))
    head = {k: v for k, v in batch.arguments().items() if k not in ("bias", "lora")}
    one_pass = 24 * DIM * VOCAB
    for rows, passes in ((24, 3.0), (12, 3.0), (0, 4.0), (9, 3 + 12 / 24)):
        flops.clear()
        largest.clear()
        monkeypatch.setattr(Tensor, "new_empty", watched)
        out = linear_preference_loss(**head, **batch.options, keep_budget=bytes_of(rows), backend="torch")
        torch.autograd.grad(out.loss, (batch.hidden, batch.weight))
        monkeypatch.setattr(Tensor, "new_empty", empty)
        assert sum(flops) == passes * one_pass
        assert max(largest) <= max(rows * VOCAB, 24 * 320)  # what is kept, or one tile


def test_citizenship(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFAST_CHECK", "1")
    batch = make()
    with torch.no_grad():
        assert not linear_preference_loss(**batch.arguments(), **batch.options).loss.requires_grad
    out = linear_preference_loss(**batch.arguments(), **batch.options, keep_budget=0)
    first = torch.autograd.grad(out.loss, batch.trained(), retain_graph=True)
    second = torch.autograd.grad(2 * out.loss, batch.trained())
    assert all(torch.equal(2 * a, b) for a, b in zip(first, second, strict=True))
    for message, change in {
        "linear_preference_loss: targets holds 999": {"targets": torch.full_like(batch.targets, 999)},
        "linear_preference_loss: components must have shape": {"components": torch.tensor([0], device="cpu")},
        "linear_preference_loss: hidden must have shape": {"hidden": torch.zeros(3)},
        "unknown loss": {"loss": "best"},
        "linear_preference_loss: pairs holds 7": {"pairs": torch.tensor([[0, 7]]), "pair_weights": None},
        "linear_preference_loss: index holds 24": {"index": batch.options["index"] + 1},
    }.items():
        with pytest.raises(ValueError, match=message):
            linear_preference_loss(**{**batch.arguments(), **batch.options, "keep_budget": 0, **change})
    # aot sorts over all pairs: its gradient is no chunk's own, so the head recomputes
    monkeypatch.setattr(module, "_linear_preference", None)
    options = {k: v for k, v in batch.options.items() if k not in ("pair_count", "pair_weights")}
    sorting = linear_preference_loss(**batch.arguments(), **options, loss="aot", keep_budget=0)
    assert torch.isfinite(torch.autograd.grad(sorting.loss, batch.weight)[0]).all()


@pytest.mark.usefixtures("device")
def test_empty() -> None:
    weight, hidden = torch.randn(9, 4, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    none = torch.empty(0, dtype=torch.int64)
    for budget in (None, 0):
        out = linear_preference_loss(
            hidden, weight, none, torch.empty(0), torch.tensor([0], dtype=torch.int32), none.view(0, 2),
            pair_count=1.0, keep_budget=budget,
        )  # fmt: skip
        dx, dw = torch.autograd.grad(out.loss, (hidden, weight))
        assert out.loss == 0 and dx.shape == (0, 4) and dw.count_nonzero() == 0


@pytest.mark.usefixtures("device")
def test_compile_fullgraph() -> None:
    batch = make(torch.float32)
    components = pair_components(batch.options["responses"], batch.options["pairs"], batch.options["index"], 24)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_preference_loss(
            hidden, weight, batch.targets, **batch.options, components=components, keep_budget=bytes_of(12)
        ).loss

    # chunk sizes are data: only the path without chunks is one graph
    def unchunked(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_preference_loss(hidden, weight, batch.targets, **batch.options).loss

    compiled = torch.compile(unchunked, fullgraph=True, backend="aot_eager")
    want, got = loss(batch.hidden, batch.weight), compiled(batch.hidden, batch.weight)
    assert error(got, want) < 1e-6
    for a, b in zip(*(torch.autograd.grad(x, (batch.hidden, batch.weight)) for x in (got, want)), strict=True):
        assert error(a, b) < 1e-5
