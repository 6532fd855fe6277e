"""linear_logprob beside its peers: forward and backward from the same rows with a random gradient a token.

Floor: the bare GEMMs that the path needs (2 passes with a frozen head, 3 with a trained one), timed in the same rounds.
flops counts 2 U D V a needed pass for everybody, recomputed passes never.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device import Setup, result, timed
from bench.timing import Run, interleave, peak_mib, summary
from mmfast.ops import linear_logprob
from mmfast.ops.dispatch import native

Row = dict[str, Any]
CPU_SHAPES = [(512, 1024, 32000), (128, 1024, 32000)]
GPU_SHAPES = [
    (u, d, v) for d, v in ((4096, 32000), (3584, 152064), (2048, 248320)) for u in (128, 256, 1024, 2048, 8192)
]
Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, weight, targets -> logp
HEADS = [(d, v, u) for u in (2048, 256, 8192, 1024, 128) for d, v in ((3584, 152064), (4096, 32000), (2048, 248320))]


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.T
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]


def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, targets, reduction="none")


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logp: Tensor = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]
    return logp


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    loss: Tensor = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets)
    return -loss


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(hidden, weight, targets, reduction="none")
    return -loss


def peers(device: torch.device) -> dict[str, Head]:
    heads: dict[str, Head] = {"mmfast": linear_logprob}
    if device.type == "cuda":
        for backend in ("cuda", "triton"):
            heads[f"mmfast-{backend}"] = partial(linear_logprob, backend=backend)
    elif native():
        heads["mmfast-torch"] = partial(linear_logprob, backend="torch")
    heads["eager"] = eager
    heads["torch.compile"] = torch.compile(eager)
    heads["torch.linear_cross_entropy"] = torch_linear_cross_entropy
    heads["trl"] = trl
    heads["liger"] = liger
    if device.type == "cuda":  # Triton alone: it has no CPU path
        heads["cut-cross-entropy"] = cut_cross_entropy
    return heads


def step(head: Head, hidden: Tensor, weight: Tensor, targets: Tensor, c: Tensor, train_head: bool) -> Run:
    x, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_(train_head)

    def run() -> tuple[Tensor, ...]:
        logp = head(x, w, targets)
        return torch.autograd.grad((logp.float() * c).sum(), [x, w] if train_head else [x])

    return run


def bare_gemms(hidden: Tensor, weight: Tensor, train_head: bool) -> Run:
    """The passes themselves, whole matrices, into buffers that exist."""
    scored, vocab = hidden.shape[0], weight.shape[0]
    logits, dx = hidden.new_empty(scored, vocab).normal_(), torch.empty_like(hidden)
    p, dw = logits.clone(), torch.empty_like(weight) if train_head else None

    def run() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(p, weight, out=dx)
        if dw is not None:
            torch.mm(p.T, hidden, out=dw)

    return run


def working(runs: dict[str, Run], chosen: str = "") -> dict[str, Run]:
    """Those peers that were asked for and run here, warmed up; the others are named."""
    good = {}
    for name, run in runs.items():
        if chosen and name not in [*chosen.split(","), "bare GEMMs"]:
            continue
        try:
            run()
            good[name] = run
        except Exception as error:
            print(f"# {name} does not run here: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    return good


def rows(options: argparse.Namespace) -> Iterator[Row]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = CPU_SHAPES if device.type == "cpu" else GPU_SHAPES
    if options.quick:
        shapes = [(64, 64, 1000)]
    if options.shape:
        shapes = [tuple(int(n) for n in options.shape.split(","))]  # type: ignore[list-item]
    dtypes = [options.dtype] if options.dtype else ["float32", "bfloat16"]
    for scored, dim, vocab in shapes:
        for name in dtypes:
            dtype = getattr(torch, name)
            torch.manual_seed(0)
            hidden = torch.randn(scored, dim, device=device, dtype=dtype)
            weight = (torch.randn(vocab, dim, device=device) * dim**-0.5).to(dtype)
            targets = torch.randint(0, vocab, (scored,), device=device)
            c = torch.randn(scored, device=device)
            frozen_mib: dict[str, float] = {}
            for train_head in (False, True):
                runs = {k: step(h, hidden, weight, targets, c, train_head) for k, h in peers(device).items()}
                runs["bare GEMMs"] = bare_gemms(hidden, weight, train_head)
                runs = working(runs, options.peers)
                times = interleave(runs, 2 if options.quick else options.repeats, warm=True)
                floor = summary(times["bare GEMMs"])
                gradients = hidden.nbytes + (weight.nbytes if train_head else 0)
                flops = 2 * scored * dim * vocab * (3 if train_head else 2)
                for peer, seconds in times.items():
                    s = summary(seconds)
                    memory = None
                    if peer != "bare GEMMs":
                        # gradients are not counted; where the peak comes before they exist, subtracting them is too
                        # much, so never below what the same peer needs with a frozen head
                        memory = max(peak_mib(runs[peer], gradients, warm=True), frozen_mib.get(peer, 0.0))
                        frozen_mib.setdefault(peer, memory)
                    yield {
                        "op": "linear_logprob",
                        "peer": peer,
                        "shape": [scored, dim, vocab],
                        "dtype": name,
                        "mode": "trained head" if train_head else "frozen head",
                        **s,
                        "floor_best_s": floor["best_s"],
                        "floor_median_s": floor["median_s"],
                        "floor_processor_s": floor["processor_best_s"],
                        "peak_mib": memory,
                        "gflops": flops / s["best_s"] / 1e9,
                    }


COMPILED = torch.compile(eager, dynamic=True)  # once for all shapes


def providers(setup: Setup) -> dict[str, Head]:
    """The peers on this device, our backends by their names."""
    found = peers(setup.device)
    del found["torch.compile"]
    if setup.device.type == "cuda":
        del found["mmfast"]  # is the first of those named
    return found if setup.dry else found | {"torch.compile": COMPILED}  # a compiler's minute is no dry run


def device_rows(setup: Setup) -> Iterator[Row]:
    shapes = [(64, 1000, 32)] if setup.dry else HEADS
    for dim, vocab, scored in shapes:
        hidden = torch.randn(scored, dim, device=setup.device, dtype=torch.bfloat16)
        weight = (torch.randn(vocab, dim, device=setup.device) * dim**-0.5).to(torch.bfloat16)
        targets = torch.randint(0, vocab, (scored,), device=setup.device)
        upstream = torch.randn(scored, device=setup.device)
        for train_head in (False, True):
            mode = "trained head" if train_head else "frozen head"
            if setup.late(f"linear_logprob {scored}x{dim}x{vocab} {mode}"):
                continue
            heads_here = providers(setup)
            runs = working({k: step(h, hidden, weight, targets, upstream, train_head) for k, h in heads_here.items()})
            flops = 2 * scored * dim * vocab * (3 if train_head else 2)
            gradients = hidden.nbytes + (weight.nbytes if train_head else 0)
            memory = {name: peak_mib(run, gradients) for name, run in runs.items()}
            for name, seconds in timed(setup, runs).items():
                yield result(setup, "linear_logprob", name, mode, [scored, dim, vocab], seconds, flops=flops,
                             peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
        yield from no_gradient(setup, hidden, weight, targets)


def no_gradient(setup: Setup, hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[Row]:
    """What a reference pass runs: one GEMM pass."""
    shape = [hidden.shape[0], hidden.shape[1], weight.shape[0]]
    if setup.late(f"linear_logprob {shape} without gradient"):
        return
    runs: dict[str, Run] = {
        name: partial(head, hidden, weight, targets)
        for name, head in providers(setup).items()
        if name != "torch.compile"
    }
    if setup.device.type == "cuda":
        runs["mmfast-triton-fused"] = partial(linear_logprob, hidden, weight, targets, backend="triton-fused")
    with torch.no_grad():
        runs = working(runs)
        memory = {name: peak_mib(run) for name, run in runs.items()}
        times = timed(setup, runs)
    for name, seconds in times.items():
        yield result(setup, "linear_logprob", name, "no gradient", shape, seconds, flops=2 * math.prod(shape),
                     peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
