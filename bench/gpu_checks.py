"""Every backend against fp64 oracles on the device at hand, forward and backward, without a host sync.

A result passes where its error is under twice that of plain torch in the same dtype plus 1e-4; log-probs also
absolutely, 1e-4 from the fp64 value of the same inputs. Repeated runs agree to the bit. Each op runs under
torch.cuda.set_sync_debug_mode("error").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import linear_logprob
from mmfast.ops.dispatch import BACKENDS, available
from mmfast.ops.head.backends import FOLDS
from mmfast.ops.kinds import KINDS, REFERENCE_FREE, SORTING
from mmfast.ops.linear_preference import linear_preference_loss, pair_components
from mmfast.ops.oracles.logprob import linear_logprob as oracle
from mmfast.ops.preference import preference_loss
from mmfast.ops.selective import selective_logprob
from mmfast.ops.splice import splice_embeddings, splice_torch

Row = dict[str, Any]
Grads = tuple[Tensor, ...]
ABSOLUTE = 1e-4
PATHS = {  # name -> (hidden, head need a gradient, keep_budget)
    "stats": (False, False, 0), "direct": (True, False, 0), "kept": (True, True, 1 << 30), "recompute": (True, True, 0),
}  # fmt: skip
KIND_OPTIONS: dict[str, dict[str, float]] = {"exo_pair": {"label_smoothing": 1e-3}, "robust": {"label_smoothing": 0.1}}


@contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Any host synchronisation inside raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def backends(device: torch.device, names: tuple[str, ...] | list[str] = BACKENDS) -> list[str]:
    """Those that can run here. Triton's interpreter is left to the tests."""
    return [b for b in names if not available(b, device) and not (b == "triton" and device.type == "cpu")]


def error(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().double().to(want.device), want.detach()
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got - want).norm() / want.norm().clamp(min=1e-30)) if want.numel() else 0.0


def row(op: str, mode: str, dtype: str, problems: list[str], **more: Any) -> Row:
    return {"op": op, "mode": f"check {mode}", "dtype": dtype, **more, "outcome": "; ".join(problems) or "ok"}


def head_inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Rows that repeat, targets of probability about .5, .99 and .9999 among them."""
    users, dim, vocab = shape
    g = torch.Generator().manual_seed(sum(shape))
    hidden = torch.randn(users, dim, generator=g)
    weight = torch.randn(vocab, dim, generator=g) / dim**0.5
    targets = torch.randint(0, vocab, (users,), generator=g)
    for i, logit in enumerate((9.0, 14.0, 20.0)):  # pull some rows onto their target's weight
        w = weight[targets[i::7]]
        hidden[i::7] = hidden[i::7] * 0.3 + w * (logit / (w * w).sum(1, keepdim=True))
    rows = torch.randint(0, users, (users,), generator=g)
    rows[: users // 2] = torch.arange(users // 2)
    values = {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "bias": torch.randn(vocab, generator=g).to(dtype)}
    extra = {"targets": targets[rows], "rows": rows, "upstream": torch.randn(users, generator=g)}
    return {name: t.to(device) for name, t in (values | extra).items()}


def head_case(f: Callable[..., Any], given: dict[str, Tensor], path: str, **options: Any) -> tuple[list[Tensor], Grads]:
    """Outputs and gradients of one head op; the leaves are fresh."""
    hidden_grad, head_grad, _ = PATHS[path]
    wants = {"hidden": hidden_grad, "weight": head_grad, "bias": head_grad}
    leaves = {k: given[k].detach().requires_grad_(wants[k]) for k in wants if k != "bias" or options.get("use_bias")}
    options.pop("use_bias", None)
    out = f(**leaves, targets=given["targets"], rows=given["rows"], **options)
    outputs = list(out) if isinstance(out, tuple) else [out]
    needed = [leaf for leaf in leaves.values() if leaf.requires_grad]
    if not needed:
        return outputs, ()
    loss = (outputs[0] * given["upstream"].to(outputs[0].dtype)).sum()
    if options.get("entropy_grad"):
        loss = loss + (outputs[1] * given["upstream"].flip(0).to(outputs[1].dtype)).sum()
    return outputs, torch.autograd.grad(loss, needed)


def plain(dtype: torch.dtype) -> Callable[..., Any]:
    """The oracle in `dtype`, with linear_logprob's outputs."""

    def f(return_entropy: bool = False, entropy_grad: bool = False, **arguments: Any) -> Any:
        out = oracle(**arguments, dtype=dtype)
        return (
            (out["logp"], out["entropy"] if entropy_grad else out["entropy"].detach())
            if return_entropy
            else out["logp"]
        )

    return f


def heads(device: torch.device, small: bool) -> Iterator[Row]:
    shapes = [(37, 64, 1003)] if small else [(37, 64, 1003), (300, 256, 5000), (1, 32, 1), (64, 128, 32001)]
    variants: list[dict[str, Any]] = [
        {},
        {"use_bias": True, "softcap": 8.0, "temperature": 0.7, "return_entropy": True, "entropy_grad": True},
    ]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for backend in backends(device, list(FOLDS)):
            problems = []
            for shape in shapes:
                given = head_inputs(shape, dtype, device)
                for path, (_, _, keep) in PATHS.items():
                    for options in variants:
                        label = f"{shape} {path} {'all options' if options else 'plain'}"
                        problems += head_problems(given, path, options, keep, backend, label, device)
            name = str(dtype).removeprefix("torch.")
            yield row("linear_logprob", "fp64, sync, repeat", name, problems, peer=f"mmfast-{backend}")


def head_problems(
    given: dict[str, Tensor], path: str, options: dict[str, Any], keep: int, backend: str, label: str,
    device: torch.device,
) -> list[str]:  # fmt: skip
    dtype, width = given["hidden"].dtype, given["weight"].shape[0]
    ours_options = options | {"backend": backend, "keep_budget": keep, "tile_budget": 4 * 37 * max(width // 3, 64)}
    head_case(linear_logprob, given, path, **ours_options)  # lazy initialisation may wait for the device
    with no_sync(device):
        ours = head_case(linear_logprob, given, path, **ours_options)
        again = head_case(linear_logprob, given, path, **ours_options)
    wide = {k: t.double() if t.is_floating_point() else t for k, t in given.items()}
    want = head_case(plain(torch.float64), wide, path, **options)
    usual = head_case(plain(dtype), given, path, **options)
    return compare(label, *((*x[0], *x[1]) for x in (ours, want, usual, again)))


def compare(
    label: str, ours: Sequence[Tensor], want: Sequence[Tensor], usual: Sequence[Tensor], again: Sequence[Tensor]
) -> list[str]:
    """The first of each are log-probs."""
    problems = []
    gap = float((ours[0].double() - want[0]).detach().abs().max())
    if not gap <= ABSOLUTE:
        problems.append(f"{label}: a log-prob is {gap:.2e} off")
    for i, (a, b, c, d) in enumerate(zip(ours, want, usual, again, strict=True)):
        if not error(a, b) <= 2 * error(c, b) + 1e-4:
            problems.append(f"{label}: result {i} has error {error(a, b):.2e}, torch {error(c, b):.2e}")
        if not torch.equal(a, d):
            problems.append(f"{label}: result {i} differs between two runs")
    return problems


def selective(device: torch.device) -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for backend in backends(device, list(FOLDS)):
            problems = []
            for users, vocab in ((50, 5003), (3, 1), (16, 4096)):
                g = torch.Generator().manual_seed(users)
                logits = (3 * torch.randn(users, vocab, generator=g)).to(device, dtype)
                targets = torch.randint(0, vocab, (users,), generator=g).to(device)
                upstream = torch.randn(users, generator=g).to(device)

                def once(
                    f: Callable[..., Tensor], z: Tensor, y: Tensor = targets, c: Tensor = upstream
                ) -> tuple[Tensor, Tensor]:
                    leaf = z.detach().requires_grad_()
                    logp = f(leaf, y)
                    return logp.detach(), torch.autograd.grad((logp * c.to(logp.dtype)).sum(), leaf)[0]

                def ours(z: Tensor, y: Tensor, backend: str = backend) -> Tensor:
                    return selective_logprob(z, y, backend=backend)

                once(ours, logits)
                with no_sync(device):
                    got, again = once(ours, logits), once(ours, logits)
                want, usual = once(eager_selective, logits.double()), once(eager_selective, logits)
                problems += compare(f"{users}x{vocab}", got, want, usual, again)
            name = str(dtype).removeprefix("torch.")
            yield row("selective_logprob", "fp64, sync, repeat", name, problems, peer=f"mmfast-{backend}")


def eager_selective(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]


def linear_preference(device: torch.device) -> Iterator[Row]:
    """All paths, the chunked one too; the oracle is the two ops in fp64 on the CPU."""
    given = head_inputs((60, 64, 1003), torch.float32, torch.device("cpu"))
    responses = torch.arange(0, 61, 10, dtype=torch.int32)
    pairs = torch.tensor([[0, 1], [2, 1], [3, 4], [5, 4]])
    ref = torch.linspace(-3, -1, 60)
    components = pair_components(responses, pairs, None, 60)

    def once(where: torch.device, dtype: torch.dtype, train_head: bool, **options: Any) -> tuple[Tensor, ...]:
        to = lambda t: t.to(where, dtype if t.is_floating_point() else t.dtype)  # noqa: E731
        hidden, weight = (to(given[name]).detach() for name in ("hidden", "weight"))
        hidden.requires_grad_()
        weight.requires_grad_(train_head)
        tensors = [to(t) for t in (given["targets"], ref, responses, pairs)]
        needed = [hidden, weight] if train_head else [hidden]

        def call() -> tuple[Tensor, ...]:
            loss = linear_preference_loss(hidden, weight, *tensors, components=components, **options).loss
            return (loss.detach(), *torch.autograd.grad(loss, needed))

        call()
        with no_sync(where):
            return call()

    for backend in backends(device, list(FOLDS)):
        problems = []
        for name, (train_head, keep) in {"frozen": (False, 0), "kept": (True, 1 << 30), "chunked": (True, 0)}.items():
            want = once(torch.device("cpu"), torch.float64, train_head, backend="torch", keep_budget=1 << 30)
            got = once(device, torch.float32, train_head, backend=backend, keep_budget=keep)
            errors = [error(a.cpu(), b) for a, b in zip(got, want, strict=True)]
            problems += [f"{name}: error {e:.2e}" for e in errors if not e <= ABSOLUTE]
        yield row("linear_preference_loss", "fp64, sync", "float32", problems, peer=f"mmfast-{backend}")


def fused(device: torch.device) -> Iterator[Row]:
    if device.type != "cuda" or available("triton", device):
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        problems = []
        for shape in ((37, 64, 1003), (300, 256, 5000), (1, 32, 1)):
            given = head_inputs(shape, dtype, device)
            want = oracle(given["hidden"], given["weight"], given["targets"], rows=given["rows"], bias=given["bias"])
            arguments = {name: given[name] for name in ("hidden", "weight", "targets", "rows", "bias")}
            linear_logprob(**arguments, backend="triton-fused")
            with no_sync(device):
                got = linear_logprob(**arguments, backend="triton-fused")
            gap = float((got.double() - want["logp"]).abs().max())
            problems += [f"{shape}: a log-prob is {gap:.2e} off"] if not gap <= ABSOLUTE else []
        name = str(dtype).removeprefix("torch.")
        yield row("linear_logprob", "fp64, sync", name, problems, peer="mmfast-triton-fused")


def preference_twice(
    given: list[Tensor | None], where: torch.device, dtype: torch.dtype, backend: str, options: dict[str, Any]
) -> tuple[list[Tensor], bool]:
    """(loss, gradient) of logps = given[0], and whether a second run agrees to the bit."""
    to = lambda t: None if t is None else t.to(where, dtype if t.is_floating_point() else t.dtype)  # noqa: E731
    logps, ref, responses, pairs, index, weights = (to(t) for t in given)
    leaf = logps.detach().requires_grad_()

    def once() -> list[Tensor]:
        out = preference_loss(leaf, ref, responses, pairs, index=index, weights=weights, backend=backend, **options)
        return [out.loss.detach(), *torch.autograd.grad(out.loss, leaf)]

    once()
    with no_sync(where):
        first, second = once(), once()
    return first, all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def preference(device: torch.device) -> Iterator[Row]:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (24,), generator=g)
    responses = torch.cat([torch.zeros(1), lengths.cumsum(0)]).to(torch.int32)
    count = int(responses[-1])
    pairs = torch.randint(0, 24, (40, 2), generator=g)
    index = torch.randint(0, count // 2, (count,), generator=g)
    logps, ref, weights = (sign * torch.rand(count, generator=g) for sign in (-1, -1, 1))
    for backend in backends(device):
        problems = []
        for kind in KINDS:
            if kind in SORTING:
                continue
            options = {"loss": kind} | KIND_OPTIONS.get(kind, {})
            given = [logps, None if kind in REFERENCE_FREE else ref, responses, pairs, index, weights]
            want, _ = preference_twice(given, torch.device("cpu"), torch.float64, "torch", options)
            got, repeats = preference_twice(given, device, torch.float32, backend, options)
            problems += [] if repeats else [f"{kind}: differs between two runs"]
            errors = [error(a.cpu(), b) for a, b in zip(got, want, strict=True)]
            problems += [f"{kind}: error {e:.2e}" for e in errors if not e <= 2e-5]
        yield row("preference_loss", "fp64, sync, repeat", "float32", problems, peer=f"mmfast-{backend}")


def splice(device: torch.device) -> Iterator[Row]:
    g = torch.Generator().manual_seed(0)
    for backend in backends(device):
        problems = []
        for dtype in (torch.float32, torch.bfloat16):
            for width in (4096, 100, 1):
                tokens = torch.randint(0, 500, (900,), generator=g)
                features = torch.full((900,), -1)
                features[5:581] = torch.randperm(576, generator=g)
                table, images = torch.randn(500, width, generator=g), torch.randn(576, width, generator=g)
                upstream = torch.randn(900, width, generator=g).to(device, dtype)
                leaves = [t.to(device, dtype).requires_grad_() for t in (table, images)]
                where = [tokens.to(device), features.to(device)]

                def once(
                    leaves: Any = leaves, where: Any = where, upstream: Tensor = upstream, backend: str = backend
                ) -> Any:
                    out = splice_embeddings(where[0], leaves[0], leaves[1], where[1], backend=backend)
                    return (out, *torch.autograd.grad(out, leaves, upstream))

                once()
                with no_sync(device):
                    got, again = once(), once()
                wide = [t.detach().double().requires_grad_() for t in leaves]
                out = splice_torch(where[0], wide[0], wide[1], where[1])
                want = (out, *torch.autograd.grad(out, wide, upstream.double()))
                eps = torch.finfo(dtype).eps
                problems += [f"width {width} {dtype}: {error(a, b):.2e}" for a, b in zip(got, want, strict=True)
                             if not error(a, b) <= eps]  # fmt: skip
                if not torch.equal(got[0].double(), out):
                    problems.append(f"width {width} {dtype}: the copy is not exact")
                if not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
                    problems.append(f"width {width} {dtype}: differs between two runs")
        yield row("splice_embeddings", "exact, sync, repeat", "float32, bfloat16", problems, peer=f"mmfast-{backend}")


def run(device: torch.device, small: bool) -> Iterator[Row]:
    yield from splice(device)
    yield from preference(device)
    yield from selective(device)
    yield from linear_preference(device)
    yield from heads(device, small)
    yield from fused(device)
