"""Every layout a tensor argument can come in, and the walk that tries them on a call of an op (subjects.py).

A layout puts the same values into a buffer whose other places hold poison (NaN, or an index far outside), so that a
kernel that reads a stride wrongly cannot be right by luck. `tensor_arguments` reads a public op's signature: an
argument that no subject here supplies fails the test (test_layouts.py).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from tests.ops.logprob_cases import error
from tests.ops.places import generator

Arguments = dict[str, Tensor]
PLAIN = re.compile(r"^(int|float|bool|str)( \| None)?$")


def tensor_arguments(op: Callable[..., Any]) -> set[str]:
    """Names of the arguments of `op` that are tensors; a pair of tensors counts as name[0] and name[1]."""
    found: set[str] = set()
    for name, parameter in inspect.signature(op).parameters.items():
        kind = str(parameter.annotation)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and name == "objective":  # preference_loss's own
            found |= tensor_arguments(ops.preference_loss) - {"logps"}
        elif kind.startswith("tuple[Tensor, Tensor]"):
            found |= {f"{name}[0]", f"{name}[1]"}
        elif kind in ("Tensor", "Tensor | None"):
            found.add(name)
        else:
            assert PLAIN.match(kind), f"{op.__name__}: no layout test knows what {name}: {kind} is"
    return found


# --- layouts: each takes a plain tensor and returns a view of a poisoned buffer


def poisoned(t: Tensor, *shape: int) -> Tensor:
    if t.is_floating_point():
        return t.new_full(shape, torch.nan)
    return t.new_full(shape, 1 << (30 if t.dtype == torch.int32 else 40))


def transposed(t: Tensor) -> Tensor:
    """Dimensions in reverse order in memory; a vector is a column of a matrix."""
    if t.dim() < 2:
        return poisoned(t, t.numel(), 3)[:, 1].view(t.shape).copy_(t)
    return poisoned(t, *reversed(t.shape)).permute(*reversed(range(t.dim()))).copy_(t)


def stepped(t: Tensor) -> Tensor:
    wide = poisoned(t, *(2 * n + 1 for n in t.shape))
    return wide[tuple(slice(1, 2 * n, 2) for n in t.shape)].copy_(t)


def offset(t: Tensor) -> Tensor:
    """Contiguous, at an address that is a multiple of the element's size only."""
    return poisoned(t, t.numel() + 1)[1:].view(t.shape).copy_(t)


def expanded(t: Tensor, dim: int) -> Tensor:
    """Stride 0 along `dim`: here the values do change, to those of the first slice."""
    first = t.narrow(dim, 0, 1).clone()
    return first.expand(t.shape)


def layouts(name: str, t: Tensor, offsets: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    yield "transposed", transposed(t)
    yield "stepped", stepped(t)
    yield "offset", offset(t)
    for dim in range(t.dim()):
        if t.shape[dim] > 1 and name not in offsets and not (name == "pairs" and dim == 1):
            yield f"expanded along {dim}", expanded(t, dim)  # offsets must rise, a pair has two entries


# --- a call of an op, its oracle, and how each argument becomes empty


@dataclass
class Subject:
    op: Callable[..., Any]
    arguments: Arguments
    oracle: Callable[..., list[Tensor]]  # (arguments in fp64) -> outputs
    call: Callable[..., list[Tensor]]  # (arguments, backend) -> outputs
    trained: tuple[str, ...]
    offsets: tuple[str, ...] = ()  # arguments whose values rise: they cannot be expanded
    empty: dict[str, Callable[[Arguments], Arguments]] = field(default_factory=dict)  # by argument
    limit: float = 2e-5  # of an output, relative to the largest
    gradient_limit: float = 2e-5
    leaves: bool = True  # whether what is trained is a leaf


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (scale * torch.randn(shape, generator=generator(seed), dtype=torch.float64)).to(dtype)


# --- one call, held to its oracle


def outcomes(
    subject: Subject, given: Arguments, run: Callable[[Arguments], list[Tensor]], upstream: str, leaves: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """(outputs, gradients of what is trained), under random upstream gradients in the layout `upstream`."""
    given = given if leaves else {k: same_memory(t) for k, t in given.items()}
    leaf = {k: t.detach().requires_grad_(k in subject.trained) for k, t in given.items()}
    used = leaf if leaves else {k: t.view_as(t) if t.requires_grad else t for k, t in leaf.items()}
    outputs = run(used)
    made = [(i, out) for i, out in enumerate(outputs) if out.requires_grad]
    if not made or not subject.trained:
        return outputs, []
    grads = []
    for i, out in made:
        grad = normal(*out.shape, seed=20 + i).to(out.dtype)
        if upstream == "expanded" and out.dim():
            grad = grad.flatten()[:1].clone().view([1] * out.dim()).expand(out.shape) if out.numel() else grad
        elif upstream in ("transposed", "stepped", "offset"):
            grad = {"transposed": transposed, "stepped": stepped, "offset": offset}[upstream](grad)
        grads.append(grad)
    trained = [used[name] for name in subject.trained]
    found = torch.autograd.grad([out for _, out in made], trained, grads, allow_unused=True)
    return outputs, [torch.zeros_like(t) if g is None else g for g, t in zip(found, trained, strict=True)]


def same_memory(t: Tensor) -> Tensor:
    """A copy of `t` with everything that lies around it in memory."""
    return t.new_empty(0).set_(t.untyped_storage().clone(), t.storage_offset(), t.shape, t.stride())


Truth = tuple[list[Tensor], list[Tensor]]


def exact(given: Arguments, double: bool = True) -> Arguments:
    plain = {k: t.detach().contiguous().clone() for k, t in given.items()}
    return {k: t.double() if double and t.is_floating_point() else t for k, t in plain.items()}


def wrong(
    subject: Subject,
    given: Arguments,
    backend: str | None,
    upstream: str = "plain",
    truth: Truth | None = None,
    alike: bool = False,
) -> str:
    """Empty if the op agrees with its oracle on these arguments, forward and backward; else what does not.

    `truth`: what the oracle says, where that is known already. `alike`: rows of an argument are all the same, and may
    come to nearly nothing under the random upstream gradients: what is left is held to the size of what was added up.
    """
    want = truth or outcomes(subject, exact(given), subject.oracle, upstream)
    before = {k: t.detach().clone() for k, t in given.items()}
    got = outcomes(subject, given, lambda a: subject.call(a, backend), upstream, subject.leaves)
    if subject.leaves:  # else the gradient takes the logits' place
        changed = [k for k, t in before.items() if not torch.equal(t, given[k])]
        assert not changed, f"{changed} overwritten"
    problems = []
    for kind, ours, wanted, limit in zip(
        ("output", "gradient"), got, want, (subject.limit, subject.gradient_limit), strict=True
    ):
        for i, (a, b) in enumerate(zip(ours, wanted, strict=True)):
            least = got[0][0].numel() ** 0.5 if alike and kind == "gradient" and a.dtype == torch.bfloat16 else 0.0
            label = f"{kind} {subject.trained[i] if kind == 'gradient' else i}"
            if a.shape != b.shape:
                problems.append(f"{label} has shape {list(a.shape)}, not {list(b.shape)}")
            elif not (off := distance(a, b, least)) <= limit and not (
                kind == "gradient"
                and a.dtype == torch.bfloat16  # copies of a row may cancel: then plain bf16 autograd is as far off
                and off <= 2 * distance(outcomes(subject, exact(given, False), subject.oracle, upstream)[1][i], b)
            ):
                problems.append(f"{label} is off by {off:.1e}")
    return ", ".join(problems)


def distance(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    """Relative to the largest value of b, or to `least` where that is larger; absolute where b is nearly zero."""
    if not b.numel():
        return 0.0
    large = float(b.detach().double().abs().max())
    if large > 1e-6:
        return error(a, b) * large / max(large, least)
    return float((a.detach().double() - b.detach()).abs().max())


def walk(subject: Subject, backend: str | None, briefly: bool = False, only: tuple[str, ...] = ()) -> list[str]:
    """Every argument (or `only` these) in every layout, the others plain; all at once; then empty ones and upstream
    gradients, which `briefly` leaves out."""
    base = subject.arguments
    truth = outcomes(subject, exact(base), subject.oracle, "plain")
    problems = [("plain", wrong(subject, base, backend, truth=truth))]
    for name, t in base.items():
        for layout, view in layouts(name, t, subject.offsets) if not only or name in only else ():
            if not layout.startswith("expanded"):
                problems.append((f"{name} {layout}", wrong(subject, base | {name: view}, backend, truth=truth)))
            elif not briefly and subject.leaves:  # gradients do not overwrite logits that share memory: refused
                problems.append((f"{name} {layout}", wrong(subject, base | {name: view}, backend, alike=True)))
    for make in (transposed, stepped, offset):
        given = {name: make(t) for name, t in base.items()}
        problems.append((f"all {make.__name__}", wrong(subject, given, backend, make.__name__, truth)))
    if not briefly:
        for name, shrink in subject.empty.items():
            assert name in base and any(t.numel() == 0 or name == "responses" for t in shrink(base).values())
            problems.append((f"{name} empty", wrong(subject, base | shrink(base), backend)))
        for upstream in ("transposed", "stepped", "offset", "expanded") if subject.trained else ():
            same = truth if upstream != "expanded" else None
            problems.append((f"upstream {upstream}", wrong(subject, base, backend, upstream, same)))
    return [f"{label}: {problem}" for label, problem in problems if problem]


def aliases(subject: Subject, backend: str | None) -> list[str]:
    """Every two floating arguments of one dtype, the second a part of the first's memory where shapes allow it; and
    rows that are their own targets."""
    base, problems = subject.arguments, []
    for one, two in permutations([name for name, t in base.items() if t.dim()], 2):
        a, b = base[one], base[two]
        indices = not (a.is_floating_point() and b.is_floating_point())
        if a.dtype != b.dtype or a.shape[1:] != b.shape[1:] or len(a) < len(b):
            continue
        if indices and (one, two) != ("rows", "targets"):  # the values of others say where they lie
            continue
        if problem := wrong(subject, base | {two: a[: len(b)]}, backend):
            problems.append(f"{two} in {one}: {problem}")
    return problems
