"""selective_logprob beside log_softmax and gather, and TRL's selective_log_softmax: forward and backward from logits
that exist.

The bytes that a GPU's rows count are three of the logits: read in each pass, the gradient written. The floor of a CPU's
rows is a copy, which moves two. TRL's function gives log-probs in the logits' dtype, everybody else's are fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.device import Row, Setup, result, timed
from bench.logprob import working
from bench.timing import Run, compared, gradient, interleave, peak_mib
from mmfast.ops import selective_logprob

CPU_SHAPES = [(512, 32000), (128, 152064), (32, 32000)]  # the last: where a call costs as much as its work
SEQUENCES = 8  # rows of tokens in the batch that TRL's function is given, which it goes through one by one
Selective = Callable[[Tensor, Tensor], Tensor]  # logits[U,V], targets[U] -> logp[U]


def eager(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]


def trl(logits: Tensor, targets: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    sequences = SEQUENCES if len(logits) % SEQUENCES == 0 else 1
    batch = logits.view(sequences, -1, logits.shape[1])
    logp: Tensor = selective_log_softmax(batch, targets.view(sequences, -1))
    return logp.flatten()


PEERS: dict[str, Selective] = {"log_softmax + gather": eager, "trl": trl}
COMPILED = torch.compile(eager, dynamic=True)


def runs_of(calls: dict[str, Selective], logits: Tensor, targets: Tensor, upstream: Tensor) -> dict[str, Run]:
    """Each call with its backward pass; the gradient of its log-probs comes in their dtype."""

    def call(peer: Selective, z: Tensor, y: Tensor) -> Tensor:
        return peer(z, y).float()

    return {n: partial(gradient, call, [logits], peer, logits, targets, upstream=upstream) for n, peer in calls.items()}


def rows(options: argparse.Namespace) -> Iterator[Row]:
    chosen = f"{options.peers},copy" if options.peers else ""
    for scored, vocab in [(64, 1000)] if options.quick else CPU_SHAPES:
        for name in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
            g = torch.Generator().manual_seed(0)
            logits = torch.randn(scored, vocab, generator=g).to(getattr(torch, name)).requires_grad_()
            targets = torch.randint(0, vocab, (scored,), generator=g)
            upstream = torch.randn(scored, generator=g)
            calls: dict[str, Selective] = {"mmfast": selective_logprob, **PEERS, "torch.compile": COMPILED}
            runs = runs_of(calls, logits, targets, upstream)
            source, target = logits.detach(), torch.empty_like(logits)
            runs["copy"] = partial(target.copy_, source)
            runs = working(runs, chosen)
            times = interleave(runs, options.repeats, warm=True)
            same = {"mode": "forward+backward", "dtype": name}
            for row in compared("selective_logprob", f"U={scored},V={vocab}", times, "copy", **same):
                if row["peer"] != "copy":
                    row["peak_mib"] = peak_mib(runs[row["peer"]], logits.nbytes, warm=True)
                yield row


def device_rows(setup: Setup) -> Iterator[Row]:
    scored, vocab = (16, 500) if setup.dry else (2048, 152064)
    backends = ("cuda", "triton") if setup.device.type == "cuda" else ("cpu", "torch")
    calls = {f"mmfast-{b}": partial(selective_logprob, backend=b) for b in backends} | PEERS
    if not setup.dry:  # a compiler's minute is no dry run
        calls["torch.compile"] = COMPILED
    for dtype in (torch.float32, torch.bfloat16):
        if setup.late(f"selective_logprob {dtype}"):
            return
        logits = torch.randn(scored, vocab, device=setup.device, dtype=dtype).requires_grad_()
        targets = torch.randint(0, vocab, (scored,), device=setup.device)
        upstream = torch.randn(scored, device=setup.device)
        runs = working(runs_of(calls, logits, targets, upstream))
        memory = {name: peak_mib(run, logits.nbytes) for name, run in runs.items()}
        for name, seconds in timed(setup, runs).items():
            yield result(setup, "selective_logprob", name, "forward+backward", [scored, vocab], seconds,
                         bytes=3 * logits.nbytes, peak_mib=memory[name], dtype=str(dtype)[6:])  # fmt: skip
