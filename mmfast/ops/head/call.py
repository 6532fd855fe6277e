"""A call of the head, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.ops.arguments import FLOATS, INDEX, check, check_range, short
from mmfast.ops.head.spec import KEEP_BUDGET, TILE_BUDGET, HeadSpec, budget_for
from mmfast.ops.head.tiles import Head


class Call(NamedTuple):
    head: Head  # autocast applied
    rows: Tensor | None  # of x and u, one a target; None: all in order
    spec: HeadSpec  # budgets filled in
    wants: list[bool]  # whether x, u, weight, B, bias need a gradient
    backend: str  # "": the first that suits


def prepare(
    op: str,
    head: Head,
    rows: Tensor | None,
    spec: HeadSpec,
    *,
    tile_budget: int | None = None,
    keep_budget: int | None = None,
    backend: str | None = None,
) -> Call:
    """Checks everything on the host; nothing is computed but casts. `spec` is of logit_spec."""
    # Shapes and dtypes, an argument at a time.
    hidden, u, weight, b, bias, targets = head
    check(op, "hidden", hidden, FLOATS, ("T", "D"))
    length, dim, device = *hidden.shape, hidden.device
    check(op, "weight", weight, FLOATS, ("V", dim), device)
    vocab = weight.shape[0]
    if vocab == 0 or dim == 0:
        raise ValueError(f"{op}: weight is empty, shape {list(weight.shape)}")
    check(op, "targets", targets, INDEX, (length if rows is None else "U",), device)
    if rows is not None:
        check(op, "rows", rows, INDEX, (targets.shape[0],), device)
    if bias is not None:
        check(op, "bias", bias, FLOATS, (vocab,), device)
    if u is not None:
        check(op, "lora[0]", u, FLOATS, (length, "r"), device)
        check(op, "lora[1]", b, FLOATS, (vocab, u.shape[1]), device)
    # Autocast as F.linear has it: what is multiplied is cast, the bias is not.
    if torch.is_autocast_enabled(device.type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device.type)
        hidden, u, weight, b = (t if t is None else t.to(dtype) for t in head[:4])  # type: ignore[assignment]
    for name, t in (("weight", weight), ("lora[0]", u), ("lora[1]", b)):
        if t is not None and t.dtype != hidden.dtype:
            kinds = f"{name} is {short(t.dtype)}, but hidden is {short(hidden.dtype)}"
            raise ValueError(f"{op}: {kinds}: cast one of them")
    if rows is not None:
        check_range(op, "rows", rows, 0, length)
    # What needs a gradient decides the path; budgets decide what is kept for it.
    head = Head(hidden, u, weight, b, bias, targets)
    wants = [t is not None and t.requires_grad for t in head[:5]] if torch.is_grad_enabled() else [False] * 5
    budgets = budget_for(device, TILE_BUDGET, tile_budget), budget_for(device, KEEP_BUDGET, keep_budget)
    spec = HeadSpec(*spec[:6], any(wants[:2]), any(wants[2:]), *budgets)
    return Call(head, rows, spec, wants, backend or "")


def logit_spec(
    op: str, softcap: float | None, temperature: float, entropy: bool, entropy_grad: bool, squares: bool, total: bool
) -> HeadSpec:
    """Checks the public options."""
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{op}: softcap must be above 0, not {softcap} (None: no cap)")
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be above 0, not {temperature}")
    if entropy_grad and not entropy:
        raise ValueError(f"{op}: entropy_grad=True needs return_entropy=True")
    return HeadSpec(softcap or 0.0, temperature, entropy, squares, total, entropy_grad)
