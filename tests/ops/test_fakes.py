"""The custom ops' fake implementations tell the shapes, dtypes and strides of what is really made, in every layout: a
compiled graph takes them at their word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.ops import layouts, subjects
from tests.ops.layouts import Subject


def without_rows(subject: Subject) -> Subject:
    """hidden and lora[0] reach the op as they are, not gathered."""
    scored = subject.arguments["targets"].shape[0]
    subject = subjects.without(subject, "rows")
    subject.arguments |= {"hidden": subjects.normal(scored, 6), "lora[0]": subjects.normal(scored, 3)}
    return subject


SUBJECTS: dict[str, Callable[[], Subject]] = {
    **{f"linear_logprob, {path}": lambda p=path: without_rows(subjects.linear_logprob(p)) for path in subjects.PATHS},
    "rows": lambda: subjects.linear_logprob("kept"),
    "selective_logprob": lambda: subjects.selective_logprob(False),
    "linear_preference_loss": lambda: without_rows(subjects.linear_preference_loss(True)),
    "splice_embeddings": subjects.splice_embeddings,
    "tree_attention": subjects.tree_attention,
    "tree_attention, kernel": lambda: subjects.tree_attention(width=16),
}


def described(t: Tensor) -> tuple[Any, ...]:
    strides = [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] if t.numel() else []
    return tuple(t.shape), t.dtype, strides


class Compared(TorchDispatchMode):
    """Runs every op of ours on fake copies of its arguments too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        real = func(*args, **(kwargs or {}))
        if func.namespace == "mmfast":
            self.seen.add(str(func))
            mode = FakeTensorMode()
            copies = tree_map_only(Tensor, mode.from_tensor, args)
            with _disable_current_modes(), mode:
                fake = func(*copies)
            for i, (a, b) in enumerate(zip(tree_leaves(real), tree_leaves(fake), strict=True)):
                assert a is b is None or described(a) == described(b), f"{func}, result {i}"
        return real


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", SUBJECTS)
def test_fakes_are_true(name: str) -> None:
    subject = SUBJECTS[name]()
    for make in (layouts.transposed, layouts.stepped, layouts.offset):
        given = {k: make(t) for k, t in subject.arguments.items()}
        with Compared() as compared:
            layouts.outcomes(subject, given, lambda a: subject.call(a, None), "plain")
        assert compared.seen


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["selective_logprob", "splice_embeddings", "tree_attention", "tree_attention, kernel"])
def test_the_meta_device_gives_shapes_alone(name: str) -> None:
    """Memory is estimated so; whatever reads a value there raises."""
    subject, shapes = SUBJECTS[name](), []
    for device in (torch.get_default_device(), "meta"):
        given = {k: t.detach().to(device).requires_grad_(k in subject.trained) for k, t in subject.arguments.items()}
        outputs = subject.call(given, None)
        outputs[0].sum().backward()
        found = [*outputs, *(given[k].grad for k in subject.trained)]
        assert {t.device.type for t in found} == {torch.device(device).type}
        shapes.append([(t.shape, t.dtype) for t in found])
    assert shapes[0] == shapes[1]
