"""A gradient of a gradient is refused, never silently zero; a compiled backward pass goes through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmfast import ops
from tests.ops import subjects
from tests.ops.layouts import Subject

NONLINEAR: dict[str, Callable[[], Subject]] = {
    **{f"linear_logprob, {path}": partial(subjects.linear_logprob, path) for path in ("direct", "kept", "recompute")},
    "selective_logprob": partial(subjects.selective_logprob, False),
    "preference_loss": subjects.preference_loss,
    "linear_preference_loss": partial(subjects.linear_preference_loss, False),
    "tree_attention": subjects.tree_attention,
    "tree_attention, kernel": partial(subjects.tree_attention, width=16),
}


def loss_of(subject: Subject, backend: str | None = None) -> tuple[Tensor, list[Tensor]]:
    leaf = {k: t.detach().clone().requires_grad_(k in subject.trained) for k, t in subject.arguments.items()}
    return subject.call(leaf, backend)[0].sum(), [leaf[name] for name in subject.trained]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", NONLINEAR)
def test_create_graph_is_refused(name: str) -> None:
    loss, trained = loss_of(NONLINEAR[name]())
    op = name.split(",")[0]
    inner = "preference_loss" if name == "linear_preference_loss" else op  # of two ops the outer one refuses
    with pytest.raises(RuntimeError, match=f"{inner}: its gradient cannot be differentiated again"):
        torch.autograd.grad(loss, trained, create_graph=True)
    loss, trained = loss_of(NONLINEAR[name]())
    assert all(bool(g.any()) for g in torch.autograd.grad(loss, trained))


@pytest.mark.usefixtures("device")
def test_a_gradient_penalty_is_not_dropped() -> None:
    """The silent form: loss + |gradient|^2, whose second term had no gradient."""
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    loss = -ops.linear_logprob(hidden, weight, torch.tensor([1, 2, 3])).sum()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
        (loss + grad.pow(2).sum()).backward()


@pytest.mark.usefixtures("device")
def test_splice_is_linear_so_create_graph_is_right() -> None:
    """Its gradient does not depend on its inputs: nothing is lost. Where the upstream gradient does, it raises."""
    subject = subjects.splice_embeddings()
    loss, trained = loss_of(subject)
    grads = torch.autograd.grad(loss, trained, create_graph=True)
    assert not any(g.requires_grad for g in grads)
    leaf = {k: t.clone().requires_grad_(k in subject.trained) for k, t in subject.arguments.items()}
    with pytest.raises(RuntimeError, match="segment_sum: its gradient cannot be differentiated again"):
        (grad,) = torch.autograd.grad(ops.splice_embeddings(**leaf).pow(2).sum(), leaf["table"], create_graph=True)
        grad.sum().backward()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_no_double_backward(reentrant: bool) -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    targets = torch.tensor([1, 2, 3])  # made here: the reentrant pass runs in a thread of another default device
    call = lambda x: ops.linear_logprob(x * 2, weight, targets).sum()  # noqa: E731
    checkpoint(call, hidden, use_reentrant=reentrant).backward()
    assert torch.equal(hidden.grad, torch.autograd.grad(call(hidden), hidden)[0])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["linear_logprob, kept", "selective_logprob", "preference_loss"])
def test_a_compiled_backward_pass_goes_through(name: str) -> None:
    subject = NONLINEAR[name]()

    def loss(*values: Tensor) -> Tensor:
        return subject.call(dict(zip(subject.arguments, values, strict=True)), None)[0].sum()

    leaf = [t.clone().requires_grad_(k in subject.trained) for k, t in subject.arguments.items()]
    trained = [t for t in leaf if t.requires_grad]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaf), trained)
    for a, b in zip(got, torch.autograd.grad(loss(*leaf), trained), strict=True):
        torch.testing.assert_close(a, b)
