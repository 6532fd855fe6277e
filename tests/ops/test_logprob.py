"""linear_logprob in fp64 against the oracle: every path, with every option, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mmfast.ops import linear_logprob
from mmfast.ops.head.spec import HeadSpec
from tests.ops.logprob_cases import error, make, run, run_reference

PATHS = {  # name: (trained head, entropy_grad, keep_budget)
    "direct": (False, False, None),
    "direct+entropy": (False, True, None),
    "kept": (True, False, None),
    "recompute": (True, False, 0),
    "recompute+entropy": (True, True, None),
}
OPTIONS = [
    {},
    {"bias": True},
    {"lora": True},
    {"softcap": 3.0, "temperature": 0.7},
    {"bias": True, "lora": True, "softcap": 2.0, "temperature": 1.3},
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_oracle_in_fp64(backend: str, path: str, options: dict) -> None:
    trained, entropy_grad, keep = PATHS[path]
    case = make(vocab=700, trained=trained, confidence=(0.5, 0.99, 0.9999), **options)
    # the smallest tile is 256 columns, so 700 make three, the last one ragged
    ours, grads = run(case, entropy_grad=entropy_grad, keep_budget=keep, tile_budget=1, backend=backend)
    truth, true_grads = run_reference(case, entropy_grad=entropy_grad)
    for name, value in ours.items():
        assert error(value, truth[name]) < 1e-12, name
    assert len(grads) == len(true_grads) > 0
    for name, got, want in zip(case.tensors, grads, true_grads, strict=False):
        assert error(got, want) < 1e-11, name


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("path", PATHS)
def test_gradcheck(path: str) -> None:
    trained, entropy_grad, keep = PATHS[path]
    case = make(tokens=3, dim=3, vocab=11, scored=4, trained=trained, bias=True, lora=True, softcap=4.0)
    names = list(case.tensors)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        t = dict(zip(names, values, strict=True))
        lora = (t.pop("u"), t.pop("b"))
        out = linear_logprob(
            **t, targets=case.targets, lora=lora, **case.options,
            return_entropy=True, entropy_grad=entropy_grad, keep_budget=keep,
        )  # fmt: skip
        return out if entropy_grad else out[:1]

    assert torch.autograd.gradcheck(function, tuple(case.tensors.values()))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("bias", "lora", "trained"), list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("gathered", [False, True])
def test_opcheck(bias: bool, lora: bool, trained: bool, gathered: bool) -> None:
    case = make(tokens=3, dim=4, vocab=13, scored=4, dtype=torch.float32, bias=bias, lora=lora, trained=trained)
    t = case.tensors
    rows = case.options["rows"] if gathered else None
    x, u = (t[k].detach() if k in t else None for k in ("hidden", "u"))
    if not gathered:
        x, u = (None if v is None else v[case.options["rows"]] for v in (x, u))
    for v in (x, u):
        if v is not None:
            v.requires_grad_()
    spec = HeadSpec(0.0, 1.0, True, True, True, False, True, trained, 1 << 20, 1 << 20)
    args = (x, u, t["weight"], t.get("b"), t.get("bias"), case.targets, rows, spec.flat(), "")
    torch.library.opcheck(torch.ops.mmfast.linear_logprob.default, args)
