"""selective_logprob beside log_softmax and gather, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.device import Row, Setup, result, timed
from bench.logprob import working
from bench.timing import gradient, peak_mib
from mmfast.ops import selective_logprob


def device_rows(setup: Setup) -> Iterator[Row]:
    """From bf16 logits that exist. The bytes are one read and one write of them."""
    scored, vocab = (16, 500) if setup.dry else (2048, 152064)
    if setup.late("selective_logprob"):
        return
    logits = torch.randn(scored, vocab, device=setup.device, dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(0, vocab, (scored,), device=setup.device)
    upstream = torch.randn(scored, device=setup.device)
    backends = ("cuda", "triton") if setup.device.type == "cuda" else ("cpu", "torch")
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        f"mmfast-{b}": partial(selective_logprob, backend=b) for b in backends
    }
    calls["log_softmax + gather"] = lambda z, y: torch.log_softmax(z.float(), -1).gather(-1, y[:, None])[:, 0]
    runs = working(
        {name: partial(gradient, call, [logits], logits, targets, upstream=upstream) for name, call in calls.items()}
    )
    memory = {name: peak_mib(run, logits.nbytes) for name, run in runs.items()}
    for name, seconds in timed(setup, runs).items():
        yield result(setup, "selective_logprob", name, "forward+backward", [scored, vocab], seconds,
                     bytes=2 * logits.nbytes, peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
