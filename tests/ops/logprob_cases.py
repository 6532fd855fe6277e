"""Inputs for the tests of the head ops, and the comparison every backend is held to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmfast.ops import linear_logprob
from mmfast.ops.oracles import logprob as reference
from tests.ops.places import generator


@dataclass
class Case:
    """One call: `tensors` are its floating-point arguments, by name; `options` the rest."""

    tensors: dict[str, Tensor]
    targets: Tensor
    options: dict = field(default_factory=dict)

    def clone(self, dtype: torch.dtype | None = None) -> Case:
        copies = {
            k: t.detach().to(dtype or t.dtype).clone().requires_grad_(t.requires_grad) for k, t in self.tensors.items()
        }
        return Case(copies, self.targets, self.options)

    def arguments(self) -> dict:
        t = dict(self.tensors)
        u, b = t.pop("u", None), t.pop("b", None)
        return {"targets": self.targets, **t, **({} if u is None else {"lora": (u, b)})}

    def trained(self) -> list[Tensor]:
        return [t for t in self.tensors.values() if t.requires_grad]


def make(
    tokens: int = 7,
    dim: int = 6,
    vocab: int = 300,
    scored: int = 9,
    dtype: torch.dtype = torch.float64,
    *,
    bias: bool = False,
    lora: bool = False,
    rows: bool = True,
    trained: bool = False,
    confidence: tuple[float, ...] = (),
    seed: int = 0,
    **options: object,
) -> Case:
    """Random arguments. `confidence`: probabilities that the first targets get (a bump along their weight row)."""
    g = generator(seed)

    def normal(*shape: int, grad: bool = True, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_(grad)

    tensors = {"hidden": normal(tokens, dim), "weight": normal(vocab, dim, grad=trained, scale=dim**-0.5 * 2)}
    if bias:
        tensors["bias"] = normal(vocab, grad=trained)
    if lora:
        tensors["u"], tensors["b"] = normal(tokens, 3), normal(vocab, 3, grad=trained, scale=0.5)
    targets = torch.randint(0, vocab, (scored if rows else tokens,), generator=g)
    if rows:
        options["rows"] = torch.randint(0, tokens, (scored,), generator=g)
    case = Case(tensors, targets, options)
    _make_confident(case, confidence)
    return case


def _make_confident(case: Case, confidence: tuple[float, ...]) -> None:
    """Move hidden rows along their target's weight row until the target has the wanted probability."""
    hidden, weight = case.tensors["hidden"], case.tensors["weight"]
    rows = case.options.get("rows", torch.arange(len(case.targets)))
    for i, p in enumerate(confidence):
        row, y = int(rows[i]), int(case.targets[i])
        direction = weight.detach()[y].double()
        low, high = 0.0, 100.0
        start = hidden.detach()[row].double().clone()
        for _ in range(40):
            middle = (low + high) / 2
            z = weight.detach().double() @ (start + middle * direction)
            low, high = (middle, high) if z.log_softmax(0)[y].exp() < p else (low, middle)
        with torch.no_grad():
            hidden[row] = (start + high * direction).to(hidden.dtype)


def upstream(case: Case, entropy_grad: bool = False) -> tuple[Tensor, Tensor | None]:
    """Random, non-uniform gradients of logp and entropy."""
    g = generator(99)
    n = len(case.targets)
    c = torch.randn(n, generator=g, dtype=torch.float64) * torch.rand(n, generator=g, dtype=torch.float64).exp()
    return c, torch.randn(n, generator=g, dtype=torch.float64) if entropy_grad else None


FLAGS = {"return_entropy": True, "return_logsumsq": True, "return_mean_logit": True, "return_top1": True}


def run(case: Case, logp_only: bool = False, **options: object) -> tuple[dict[str, Tensor], list[Tensor]]:
    """(outputs, gradients of the trained tensors) of linear_logprob."""
    values = linear_logprob(**case.arguments(), **case.options, **options, **({} if logp_only else FLAGS))
    names = ("logp", "entropy", "logsumsq", "mean_logit", "top1")
    outputs = {"logp": values} if logp_only else dict(zip(names, values, strict=True))
    return outputs, _gradients(case, outputs, bool(options.get("entropy_grad")))


def problems(case: Case, backend: str, logp_only: bool = False, **options: object) -> list[str]:
    """What is wrong with linear_logprob here: a log-prob, entropy or sum is 1e-4 off, or an error beyond twice that of
    plain torch in the same dtype + 1e-4, against fp64 from the case's own (rounded) inputs; or two calls differ."""
    entropy_grad = bool(options.get("entropy_grad"))
    dtype = case.tensors["hidden"].dtype
    truth, true_grads = run_reference(case.clone(torch.float64), torch.float64, entropy_grad)
    rival, rival_grads = run_reference(case, dtype, entropy_grad)
    ours, grads = run(case, logp_only, backend=backend, **options)
    again, grads_again = run(case, logp_only, backend=backend, **options)
    found = [] if ours["logp"].dtype == torch.float32 else [f"log-probs are {ours['logp'].dtype}"]
    trained = [name for name, t in case.tensors.items() if t.requires_grad]
    for name in ("logp", "entropy", "logsumsq"):
        if name in ours and not (off := float((ours[name] - truth[name]).detach().abs().max())) < 1e-4:
            found.append(f"{name} is {off:.1e} off")
    sums = [name for name in ("logp", "entropy", "logsumsq") if name in ours]
    compared = [(name, ours[name], truth[name], rival[name]) for name in sums]
    compared += zip(trained, grads, true_grads, rival_grads, strict=True)
    for name, got, want, other in compared:
        if not error(got, want) < 2 * error(other, want) + 1e-4:
            found.append(f"{name} has error {error(got, want):.1e}, torch {error(other, want):.1e}")
    dtypes = {name: (g.dtype, case.tensors[name].dtype) for name, g in zip(trained, grads, strict=True)}
    found += [f"{name} has a gradient of {got}" for name, (got, want) in dtypes.items() if got != want]
    same = zip([*ours.values(), *grads], [*again.values(), *grads_again], strict=True)
    return found if all(torch.equal(a, b) for a, b in same) else [*found, "two calls differ"]


def run_reference(
    case: Case, dtype: torch.dtype = torch.float64, entropy_grad: bool = False
) -> tuple[dict[str, Tensor], list[Tensor]]:
    outputs = reference.linear_logprob(**case.arguments(), **case.options, dtype=dtype)
    return outputs, _gradients(case, outputs, entropy_grad)


def _gradients(case: Case, outputs: dict[str, Tensor], entropy_grad: bool) -> list[Tensor]:
    if not case.trained():
        return []
    c, h = upstream(case, entropy_grad)
    total = (outputs["logp"] * c.to(outputs["logp"].dtype)).sum()
    if h is not None:
        total = total + (outputs["entropy"] * h.to(total.dtype)).sum()
    return list(torch.autograd.grad(total, case.trained()))


def error(ours: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    if not truth.numel():
        return 0.0
    ours, truth = ours.detach().double(), truth.detach().double()
    return float((ours - truth).abs().max() / truth.abs().max().clamp_min(1e-30))
