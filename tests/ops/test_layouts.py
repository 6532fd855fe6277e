"""Every tensor argument of every public op, in every layout, against the op's oracle (layouts.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfast import ops
from tests.ops import layouts, subjects
from tests.ops.layouts import Subject, tensor_arguments, walk
from tests.ops.subjects import PATHS, SIZES

DTYPES = [torch.float32, torch.bfloat16]
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "linear_logprob": lambda: subjects.linear_logprob("kept"),
    "selective_logprob": lambda: subjects.selective_logprob(False),
    "preference_loss": subjects.preference_loss,
    "linear_preference_loss": lambda: subjects.linear_preference_loss(True),
    "splice_embeddings": subjects.splice_embeddings,
    "tree_attention": subjects.tree_attention,
}
ARRAYS = {"changed_segments": {"rejected", "chosen"}}  # sequences and numpy arrays, no tensors


def test_no_public_op_has_an_argument_that_is_not_walked() -> None:
    public = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert public == set(SUBJECTS) | set(ARRAYS)
    for name, make in SUBJECTS.items():
        assert tensor_arguments(getattr(ops, name)) == set(make().arguments), name
    for name, known in ARRAYS.items():
        kinds = {k: str(p.annotation) for k, p in inspect.signature(getattr(ops, name)).parameters.items()}
        assert {k for k, kind in kinds.items() if "ndarray" in kind} == known
        assert all(layouts.PLAIN.match(kind) for k, kind in kinds.items() if k not in known)


def test_an_argument_nobody_knows_fails() -> None:
    def op(hidden: Tensor, mask: list[Tensor]) -> Tensor: ...
    def another(hidden: Tensor, mask: Tensor | None = None) -> Tensor: ...

    op.__annotations__ = {"hidden": "Tensor", "mask": "list[Tensor]"}
    with pytest.raises(AssertionError, match="no layout test knows what mask"):
        tensor_arguments(op)
    assert tensor_arguments(another) == {"hidden", "mask"}


def test_a_kernel_that_ignores_a_stride_is_caught() -> None:
    """The walk itself: an op that reads its bias by address, as if it were dense."""
    subject = subjects.linear_logprob("stats")

    def call(a: dict[str, Any], backend: str | None) -> list[Tensor]:
        bias = a["bias"]
        dense = bias if bias.is_contiguous() else bias.as_strided((1,), (1,)) * torch.arange(1, 301)
        return list(ops.linear_logprob(**subjects.nested(a | {"bias": dense}), return_entropy=True))

    subject.call = call
    found = walk(subject, None)
    assert {line.split(":")[0] for line in found} >= {"bias transposed", "bias stepped", "bias expanded along 0"}


@pytest.mark.parametrize("name", SUBJECTS)
def test_arguments_that_share_memory(backend: str, name: str) -> None:
    subject = SUBJECTS[name]()
    assert not layouts.aliases(subject, None if name == "tree_attention" else backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_linear_logprob(backend: str, path: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        assert not walk(subjects.linear_logprob(path, size, dtype), backend, size != "usual"), size


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_logprob_without_rows(backend: str, dtype: torch.dtype) -> None:
    """Then hidden itself is what the kernels read, not a gathered copy."""
    for path, size in product(("stats", "direct", "kept"), SIZES):
        subject = subjects.linear_logprob(path, size, dtype)
        scored = subject.arguments["hidden"].shape[0]
        subject = subjects.without(subject, "rows")
        subject.arguments["targets"] = subject.arguments["targets"][:scored]
        subject.empty = {
            "hidden": lambda a: {name: a[name][:0] for name in ("hidden", "lora[0]", "targets")},
            "lora[0]": subjects.no_rank,
        }
        assert not walk(subject, backend, size != "usual"), (path, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_selective_logprob(backend: str, inplace: bool, dtype: torch.dtype) -> None:
    for scored, vocab in ((6, 70), (1, 70), (6, 1)):
        assert not walk(subjects.selective_logprob(inplace, dtype, scored, vocab), backend)


def test_logits_that_share_memory_are_not_overwritten(backend: str) -> None:
    one = torch.randn(1, 9, requires_grad=True)
    targets = torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="of logits share memory"):
        ops.selective_logprob(one.expand(3, 9), targets, inplace_backward=True, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preference_loss(backend: str, dtype: torch.dtype) -> None:
    assert not walk(subjects.preference_loss(dtype), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_linear_preference_loss(backend: str, recompute: bool, dtype: torch.dtype) -> None:
    for size in SIZES:
        assert not walk(subjects.linear_preference_loss(recompute, size, dtype), backend, size != "usual"), size


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_splice_embeddings(backend: str, dtype: torch.dtype) -> None:
    for width in (6, 1):
        assert not walk(subjects.splice_embeddings(dtype, width), backend)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_tree_attention(dtype: torch.dtype) -> None:
    for width in (8, 16, 40):  # on CPU 16 is the kernel's, in fp32
        assert not walk(subjects.tree_attention(dtype, width), None)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 16])
def test_tree_attention_of_one_projection(dtype: torch.dtype, width: int) -> None:
    """Queries, keys and values are heads of one tensor, as a model's fused projection leaves them, in any layout."""
    subject = subjects.tree_attention(dtype, width)
    base = subject.arguments
    together = torch.cat([base[name] for name in "qkv"], 1)
    for whole in (together, layouts.transposed(together), layouts.offset(together)):
        views = dict(zip("qkv", whole.split([base[name].shape[1] for name in "qkv"], 1), strict=True))
        assert len({t.untyped_storage().data_ptr() for t in views.values()}) == 1
        assert not layouts.wrong(subject, base | views, None)


def test_tree_attention_where_no_blocked_kernel_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The written-out run that other devices take in fp32."""
    from mmfast.ops import attention_exact

    monkeypatch.setattr(attention_exact, "_is_blocked", lambda *_: False)
    assert not walk(subjects.tree_attention(), None)


@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_changed_segments(backend: str) -> None:
    a, b = np.array([1, 2, 3, 9, 8, 4, 5, 6]), np.array([1, 2, 3, 7, 4, 5, 6])
    want = ops.changed_segments(a.tolist(), b.tolist(), min_match=2, backend="python")
    makers: dict[str, Callable[[np.ndarray], Any]] = {
        "transposed": lambda x: np.stack([x + 50, x, x + 70], 1)[:, 1],
        "stepped": lambda x: np.repeat(x, 2)[::2],
        "backwards": lambda x: x[::-1].copy()[::-1],
        "offset": lambda x: np.concatenate([[0], x])[1:],
        "misaligned": lambda x: np.frombuffer(b"?" + x.astype(np.int32).tobytes(), np.int32, len(x), 1),
        "tensor": torch.from_numpy,
        "stepped tensor": lambda x: torch.from_numpy(np.repeat(x, 2))[::2],
    }
    for make, dtype in product(makers.values(), (np.int32, np.int64, np.uint16)):
        for pair in ((make(a.astype(dtype)), b), (a, make(b.astype(dtype)))):
            got = ops.changed_segments(*pair, min_match=2, backend=backend)
            assert all(np.array_equal(x, y) for x, y in zip(got, want, strict=True))
    same = np.broadcast_to(np.int32(7), (5,))
    assert [len(x) for x in ops.changed_segments(same, b, min_match=2, backend=backend)] == [5, 7]
    assert [len(x) for x in ops.changed_segments(a[:0], b, insertions="own", backend=backend)] == [0, 7]
