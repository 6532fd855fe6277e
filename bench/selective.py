"""selective_logprob beside log_softmax and gather, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.device import Row, Setup, result, timed
from bench.logprob import working
from bench.timing import peak_mib
from mmfast.ops import selective_logprob


def device_rows(setup: Setup) -> Iterator[Row]:
    """From bf16 logits that exist. The bytes are one read and one write of them."""
    users, vocab = (16, 500) if setup.dry else (2048, 152064)
    if setup.late("selective_logprob"):
        return
    logits = torch.randn(users, vocab, device=setup.device, dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(0, vocab, (users,), device=setup.device)
    upstream = torch.randn(users, device=setup.device)
    found: dict[str, Callable[[], Tensor]] = {
        f"mmfast-{b}": (lambda b=b: selective_logprob(logits, targets, backend=b))
        for b in (("cuda", "triton") if setup.device.type == "cuda" else ("cpu", "torch"))
    }
    found["log_softmax + gather"] = lambda: torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]
    runs = working({k: (lambda f=f: torch.autograd.grad((f() * upstream).sum(), logits)) for k, f in found.items()})
    memory = {name: peak_mib(run, logits.nbytes) for name, run in runs.items()}
    for name, seconds in timed(setup, runs).items():
        yield result(setup, "selective_logprob", name, "forward+backward", [users, vocab], seconds,
                     bytes=2 * logits.nbytes, peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
