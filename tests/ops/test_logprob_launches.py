"""What a call of linear_logprob launches on a GPU, forward and backward, counted without one: kernels of the CUDA half
and the GEMMs have empty bodies, and every other torch op that is no view and no allocation counts too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.logprob_host import EmptyFolds, problem, step
from mmfast.ops import logprob
from mmfast.ops.head import backends, call
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.head.tiles import Head

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
VOCAB = 152064  # with 256 MiB a tile: 1 tile of 256 rows, 5 of 2048
LAUNCHES = {(256, False): 6, (2048, False): 18, (256, True): 9, (2048, True): 21}  # (rows, head trained)
GATHER = ["aten.index_select.default"]
INVERSE = ["aten.sort.stable", "aten.arange.default", "aten.searchsorted.Tensor"]


class Counted(TorchDispatchMode):
    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func._schema.name.removeprefix("aten::") not in ALLOCATIONS:
            self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setitem(backends.FOLDS, "torch", lambda: EmptyFolds(calls))
    for place in (logprob, call):
        monkeypatch.setattr(place, "check_range", lambda *_: None)  # without MMFAST_CHECK there is none on a GPU
    return calls


@pytest.mark.parametrize(("rows", "trained"), LAUNCHES)
@pytest.mark.parametrize("some", [False, True])
def test_launches(rows: int, trained: bool, some: bool, calls: list[str]) -> None:
    """`some`: the rows are chosen from twice as many."""
    given = problem((rows, 8, VOCAB), trained, torch.device("cpu"))
    chosen = None
    if some:
        chosen = 2 * torch.arange(rows)
        given["hidden"] = torch.zeros(2 * rows, 8, dtype=torch.bfloat16, requires_grad=True)
    inputs = Head(given["hidden"], None, given["weight"], None, None, given["targets"])
    budgets = {name: given[name] for name in ("tile_budget", "keep_budget")}
    checked = call.prepare("op", inputs, chosen, HeadSpec(), backend="torch", **budgets)
    options, path = checked.spec.flat(), "kept" if trained else "direct"
    assert checked.spec.path(given["hidden"][:rows], VOCAB) == path
    # The bodies of both ops: nothing but their launches.
    with Counted(calls), torch.no_grad():
        told, *made = logprob._forward(*checked.head, checked.rows, options, "torch")
        head, made = (list(checked.head), made) if trained else ([], made[1:])
        (dx, *_) = logprob._backward(told, head, made, checked.rows, 2 * rows, options, checked.wants, "torch")
    assert dx.shape == (rows if chosen is None else 2 * rows, 8)
    tiles = 1 if rows == 256 else 5
    assert calls.count("cuda_fold_forward") == tiles and calls.count("gemm") == 2 * tiles + trained
    torch_ops = [name for name in calls if "aten" in name]
    assert len(calls) - len(torch_ops) == LAUNCHES[rows, trained], calls
    assert torch_ops == ([] if chosen is None else [*GATHER, *INVERSE])
    # What stands around them launches nothing more.
    around: list[str] = []
    run = step(given | {"rows": chosen}, torch.ones(rows), "torch")
    with Counted(around):
        run()
    assert around == ["mmfast.linear_logprob.default", "mmfast.linear_logprob_backward.default"]


def test_what_would_be_launched_is_seen(calls: list[str]) -> None:
    """The watch itself."""
    x = torch.ones(3)
    with Counted(calls):
        x[1:].view(-1).unsqueeze(0)
        torch.empty_like(x)
        assert not calls
        x * 2
        x.to(torch.bfloat16)
    assert calls == ["aten.mul.Tensor", "aten._to_copy.default"]
