"""linear_preference_loss beside eager torch and Liger."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.device import Row, Setup, result, timed
from bench.logprob import Head, bare_gemms, eager, working
from bench.timing import Run, gradient, interleave, peak_mib, summary
from mmfast.ops import linear_preference_loss, preference_loss


def liger_dpo(hidden: Tensor, weight: Tensor, targets: Tensor, reference: Tensor, ref_weight: Tensor) -> Run:
    """Liger takes the reference's hidden states, not its log-probs: one pass more."""
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(compiled=False)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            loss(weight, hidden, targets, ref_input=reference, ref_weight=ref_weight)[0], (hidden, weight)
        )

    return run


def together(
    h: Tensor, w: Tensor, y: Tensor, ref: Tensor, responses: Tensor, pairs: Tensor, keep_budget: int
) -> Tensor:
    return linear_preference_loss(h, w, y, ref, responses, pairs, keep_budget=keep_budget).loss


def composed(head: Head, h: Tensor, w: Tensor, y: Tensor, ref: Tensor, responses: Tensor, pairs: Tensor) -> Tensor:
    return preference_loss(head(h, w, y), ref, responses, pairs).loss


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """DPO with a trained head where P - Y does not fit keep_budget (here a quarter of it): the logits are made twice, 4
    passes, beside eager torch and Liger. Reference log-probs are given."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs_count, length, dim, vocab = (8, 32, 1024, 32000) if device.type == "cpu" else (16, 128, 4096, 32000)
    if options.quick:
        pairs_count, length, dim, vocab = 4, 8, 64, 1000
    scored = 2 * pairs_count * length
    for name in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
        dtype = getattr(torch, name)
        torch.manual_seed(0)
        hidden = torch.randn(scored, dim, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(vocab, dim, device=device) * dim**-0.5).to(dtype).requires_grad_()
        targets = torch.randint(0, vocab, (scored,), device=device)
        responses = torch.arange(0, scored + 1, length, dtype=torch.int32, device=device)
        pairs = torch.arange(2 * pairs_count, device=device).view(2, -1).T.contiguous()
        ref = eager(hidden.detach(), weight.detach(), targets) - 0.1 * torch.rand(scored, device=device)
        budget = scored * vocab * dtype.itemsize // 4

        inputs, batch = [hidden, weight], (targets, ref, responses, pairs)
        batched = hidden.detach().view(2 * pairs_count, length, dim).requires_grad_()
        labels = targets.view(2 * pairs_count, length)
        runs: dict[str, Run] = {
            "mmfast": partial(gradient, together, inputs, *inputs, *batch, budget),
            "eager": partial(gradient, composed, inputs, eager, *inputs, *batch),
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
                "mode": "trained head, P - Y does not fit",
                **summary(seconds),
                "floor_best_s": floor["best_s"],
                "floor_processor_s": floor["processor_best_s"],
                "peak_mib": memory,
            }


def device_rows(setup: Setup) -> Iterator[Row]:
    """Head and DPO loss together beside Liger's, on rows without padding or prompt (its best case), no reference."""
    count, length, dim, vocab = (2, 8, 32, 200) if setup.dry else (8, 128, 4096, 32000)
    rows = 2 * count * length
    hidden = torch.randn(rows, dim, device=setup.device).to(torch.bfloat16)
    weight = (torch.randn(vocab, dim, device=setup.device) * dim**-0.5).to(torch.bfloat16)
    targets = torch.randint(0, vocab, (rows,), device=setup.device)
    ref = torch.zeros(rows, device=setup.device)
    responses = torch.arange(0, rows + 1, length, dtype=torch.int32, device=setup.device)
    pairs = torch.arange(2 * count, device=setup.device).view(2, count).T.contiguous()  # chosen first, as Liger has it

    def ours(x: Tensor, w: Tensor, keep_budget: int | None = None) -> Tensor:
        return linear_preference_loss(x, w, targets, ref, responses, pairs, keep_budget=keep_budget).loss

    def liger(x: Tensor, w: Tensor) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        op = LigerFusedLinearDPOLoss(use_ref_model=False, compiled=not setup.dry)
        loss: Tensor = op(w, x.view(2 * count, length, dim), targets.view(2 * count, length))[0]
        return loss

    for train_head in (False, True):
        if setup.late("linear DPO"):
            return
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_(train_head)]
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        runs = working({
            "mmfast": partial(gradient, ours, needed, *leaves),
            "LigerFusedLinearDPOLoss": partial(gradient, liger, needed, *leaves),
        })  # fmt: skip
        if train_head:
            runs["mmfast, recomputing"] = partial(gradient, ours, needed, *leaves, 0)
        flops = 2 * rows * dim * vocab * (3 if train_head else 2)
        memory = {name: peak_mib(run, sum(t.nbytes for t in needed)) for name, run in runs.items()}
        for name, seconds in timed(setup, runs).items():
            yield result(setup, "linear DPO", name, "trained head" if train_head else "frozen head", [rows, dim, vocab],
                         seconds, flops=flops, peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
