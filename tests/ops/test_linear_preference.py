"""linear_preference_loss: the head and then the loss, to the bit; mistakes told before the head runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmfast.ops import linear_logprob, linear_preference_loss, preference_loss
from mmfast.ops import linear_preference as module
from tests.ops import subjects

HEAD = ("hidden", "weight", "targets", "rows", "bias", "lora", "softcap", "temperature", "tile_budget", "keep_budget")


def call(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[dict[str, Any], list[Tensor]]:
    """Arguments, and those that are trained."""
    subject = subjects.linear_preference_loss(False, dtype=dtype)
    given = {k: t.clone().requires_grad_(k in subject.trained) for k, t in subject.arguments.items()}
    return {**subjects.nested(given), "delta": None, **options}, [given[name] for name in subject.trained]


def separately(given: dict[str, Any]) -> Any:
    head = {k: v for k, v in given.items() if k in (*HEAD, "backend")}
    return preference_loss(linear_logprob(**head), **{k: v for k, v in given.items() if k not in HEAD})


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize(
    "objective",
    [{}, {"loss": "ipo", "sft_weight": 0.3}, {"loss": "aot", "pair_weights": None, "softcap": 4.0, "temperature": 1.2}],
    ids=str,
)
def test_equals_head_then_loss(backend: str, budget: int | None, objective: dict) -> None:
    chosen = None if objective.get("loss") == "aot" else backend
    given, trained = call(**objective, keep_budget=budget, backend=chosen)
    out, want = linear_preference_loss(**given), separately(given)
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
    grads, wanted = (torch.autograd.grad(3 * x.loss, trained) for x in (out, want))
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


def test_mistakes_are_told_before_the_head_runs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFAST_CHECK", "1")
    with pytest.raises(ValueError, match="targets holds 999"):
        linear_preference_loss(**call()[0] | {"targets": torch.full((7,), 999)})
    monkeypatch.setattr(module, "linear_logprob", None)
    for message, change in {
        "linear_preference_loss: hidden must have shape": {"hidden": torch.zeros(3)},
        "linear_preference_loss: hidden must be a tensor": {"hidden": None},
        "linear_preference_loss: targets must be int64": {"targets": torch.zeros(7)},
        "unknown loss": {"loss": "best"},
        "ref_logps must have shape": {"ref_logps": torch.zeros(3)},
        "needs ref_logps": {"ref_logps": None},
    }.items():
        with pytest.raises(ValueError, match=message):
            linear_preference_loss(**call()[0] | change)
    with pytest.raises(TypeError, match="unexpected keyword argument 'components'"):
        linear_preference_loss(**call()[0], components=None)


@pytest.mark.usefixtures("device")
def test_no_grad_and_one_graph() -> None:
    given, trained = call()
    with torch.no_grad():
        assert not linear_preference_loss(**given).loss.requires_grad

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_preference_loss(**given | {"hidden": hidden, "weight": weight}).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = loss(*trained[:2]), compiled(*trained[:2])
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(x, trained[:2]) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
