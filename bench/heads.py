"""linear_logprob beside its peers: forward and backward from the same rows with a random gradient a token.

Floor: the bare GEMMs that the path needs (2 passes with a frozen head, 3 with a trained one), timed in the same rounds.
flops counts 2 U D V a needed pass for everybody, recomputed passes never.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.timing import Run, interleave, peak_mib, summary
from mmfast.ops import linear_logprob, linear_preference_loss, preference_loss
from mmfast.ops.dispatch import native

CPU_SHAPES = [(512, 1024, 32000), (128, 1024, 32000)]
GPU_SHAPES = [
    (u, d, v) for d, v in ((4096, 32000), (3584, 152064), (2048, 248320)) for u in (128, 256, 1024, 2048, 8192)
]
Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, weight, targets -> logp


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.T
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]


def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, targets, reduction="none")


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets)


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
    return heads


def step(head: Head, hidden: Tensor, weight: Tensor, targets: Tensor, c: Tensor, train_head: bool) -> Run:
    x, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_(train_head)

    def run() -> tuple[Tensor, ...]:
        logp = head(x, w, targets)
        return torch.autograd.grad((logp.float() * c).sum(), [x, w] if train_head else [x])

    return run


def bare_gemms(hidden: Tensor, weight: Tensor, train_head: bool) -> Run:
    """The passes themselves, whole matrices, into buffers that exist."""
    users, vocab = hidden.shape[0], weight.shape[0]
    logits, dx = hidden.new_empty(users, vocab).normal_(), torch.empty_like(hidden)
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


def linear_logprob_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = CPU_SHAPES if device.type == "cpu" else GPU_SHAPES
    if options.quick:
        shapes = [(64, 64, 1000)]
    if options.shape:
        shapes = [tuple(int(n) for n in options.shape.split(","))]  # type: ignore[list-item]
    dtypes = [options.dtype] if options.dtype else ["float32", "bfloat16"]
    for users, dim, vocab in shapes:
        for name in dtypes:
            dtype = getattr(torch, name)
            torch.manual_seed(0)
            hidden = torch.randn(users, dim, device=device, dtype=dtype)
            weight = (torch.randn(vocab, dim, device=device) * dim**-0.5).to(dtype)
            targets = torch.randint(0, vocab, (users,), device=device)
            c = torch.randn(users, device=device)
            frozen_mib: dict[str, float] = {}
            for train_head in (False, True):
                runs = {k: step(h, hidden, weight, targets, c, train_head) for k, h in peers(device).items()}
                runs["bare GEMMs"] = bare_gemms(hidden, weight, train_head)
                runs = working(runs, options.peers)
                times = interleave(runs, 2 if options.quick else options.repeats, warm=True)
                floor = summary(times["bare GEMMs"])
                gradients = hidden.nbytes + (weight.nbytes if train_head else 0)
                flops = 2 * users * dim * vocab * (3 if train_head else 2)
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
                        "shape": [users, dim, vocab],
                        "dtype": name,
                        "mode": "trained head" if train_head else "frozen head",
                        **s,
                        "floor_best_s": floor["best_s"],
                        "floor_median_s": floor["median_s"],
                        "floor_processor_s": floor["processor_best_s"],
                        "peak_mib": memory,
                        "gflops": flops / s["best_s"] / 1e9,
                    }


def liger_dpo(hidden: Tensor, weight: Tensor, targets: Tensor, reference: Tensor, ref_weight: Tensor) -> Run:
    """Liger takes the reference's hidden states, not its log-probs: one pass more."""
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(compiled=False)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            loss(weight, hidden, targets, ref_input=reference, ref_weight=ref_weight)[0], (hidden, weight)
        )

    return run


def gradient(loss: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(), inputs)


def head_then_loss(head: Head, given: tuple[Tensor, ...]) -> Tensor:
    hidden, weight, targets, *rest = given
    return preference_loss(head(hidden, weight, targets), *rest).loss


def in_chunks(budget: int, given: tuple[Tensor, ...]) -> Tensor:
    hidden, weight, targets, *rest = given
    return linear_preference_loss(hidden, weight, targets, *rest, keep_budget=budget).loss


def linear_preference_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """DPO with a trained head where P - Y does not fit keep_budget (here a quarter of it): chunks, 3 passes, beside the
    same ops one after the other, which recompute (4 passes), eager torch and Liger. Reference log-probs are given."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs_count, length, dim, vocab = (8, 32, 1024, 32000) if device.type == "cpu" else (16, 128, 4096, 32000)
    if options.quick:
        pairs_count, length, dim, vocab = 4, 8, 64, 1000
    users = 2 * pairs_count * length
    for name in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
        dtype = getattr(torch, name)
        torch.manual_seed(0)
        hidden = torch.randn(users, dim, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(vocab, dim, device=device) * dim**-0.5).to(dtype).requires_grad_()
        targets = torch.randint(0, vocab, (users,), device=device)
        responses = torch.arange(0, users + 1, length, dtype=torch.int32, device=device)
        pairs = torch.arange(2 * pairs_count, device=device).view(2, -1).T.contiguous()
        ref = eager(hidden.detach(), weight.detach(), targets) - 0.1 * torch.rand(users, device=device)
        budget = users * vocab * dtype.itemsize // 4
        given = hidden, weight, targets, ref, responses, pairs
        small: Head = partial(linear_logprob, keep_budget=budget)
        batched = hidden.detach().view(2 * pairs_count, length, dim).requires_grad_()
        labels = targets.view(2 * pairs_count, length)
        runs: dict[str, Run] = {
            "mmfast": partial(gradient, partial(in_chunks, budget, given), given[:2]),
            "mmfast, head then loss": partial(gradient, partial(head_then_loss, small, given), given[:2]),
            "eager": partial(gradient, partial(head_then_loss, eager, given), given[:2]),
            "liger": liger_dpo(batched, weight, labels, batched.detach(), weight.detach()),
        }
        runs["bare GEMMs"] = bare_gemms(hidden.detach(), weight.detach(), True)
        runs = working(runs, options.peers)
        times = interleave(runs, 2 if options.quick else options.repeats, warm=True)
        floor = summary(times["bare GEMMs"])
        for peer, seconds in times.items():
            memory = None if peer == "bare GEMMs" else peak_mib(runs[peer], hidden.nbytes + weight.nbytes, warm=True)
            yield {
                "op": "linear_preference_loss",
                "peer": peer,
                "shape": [pairs_count, length, dim, vocab],
                "dtype": name,
                "mode": "trained head, a quarter of P - Y kept",
                **summary(seconds),
                "floor_best_s": floor["best_s"],
                "floor_processor_s": floor["processor_best_s"],
                "peak_mib": memory,
            }
