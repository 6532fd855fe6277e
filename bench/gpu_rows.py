"""The rows of bench.gpu: every op beside its peers, interleaved, with the measured roof and the memory it needs.

flops is a fixed numerator, 2 U D V a pass that the job needs (2 passes with a frozen head, 3 with a trained one),
whatever anybody recomputes. A roof is measured in the same run: a large bf16 product, and a large copy.
"""

from __future__ import annotations

import importlib.metadata
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.heads import Head, eager, peers, step, working
from bench.losses import eager_dpo, hf_merge
from bench.timing import peak_mib
from mmfast.ops import linear_logprob
from mmfast.ops.linear_preference import linear_preference_loss, pair_components
from mmfast.ops.preference import preference_loss, preference_raw
from mmfast.ops.preference_math import make_spec
from mmfast.ops.selective import selective_logprob
from mmfast.ops.splice import splice_embeddings

Row = dict[str, Any]
Run = Callable[[], object]
HEADS = [(d, v, u) for u in (1024, 8192, 256, 2048, 128) for d, v in ((4096, 32000), (3584, 152064), (2048, 248320))]
COMPILED = torch.compile(eager, dynamic=True)  # once for all shapes
PACKAGES = ("torch", "triton", "trl", "liger-kernel", "transformers")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass
class Setup:
    device: torch.device
    repeats: int
    dry: bool
    deadline: float
    roofs: dict[str, float] = field(default_factory=dict)  # "flops", "bytes" a second

    def late(self, what: str) -> bool:
        if time.monotonic() < self.deadline:
            return False
        print(f"# out of time: {what} was left out")
        return True


def timed(setup: Setup, runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Seconds of every run, round by round, by device events where there is a device. Two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(setup.repeats + 2):
        for name, run in runs.items():
            if setup.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                run()
                end.record()
                end.synchronize()
                seconds = start.elapsed_time(end) / 1e3
            else:
                begin = time.perf_counter()
                run()
                seconds = time.perf_counter() - begin
            if r >= 2:
                times[name].append(seconds)
    return times


def result(setup: Setup, op: str, peer: str, mode: str, shape: list[int], seconds: list[float], **more: Any) -> Row:
    middle = statistics.median(seconds)
    row: Row = {"op": op, "peer": peer, "mode": mode, "shape": shape, "median_s": middle, "best_s": min(seconds),
                "repeats": len(seconds), **more}  # fmt: skip
    for unit in ("flops", "bytes"):
        if unit in more and unit in setup.roofs:
            row["fraction_of_roof"] = more[unit] / middle / setup.roofs[unit]
    return row


def roof(setup: Setup) -> Iterator[Row]:
    n, size = (256, 1 << 16) if setup.dry else (8192, 1 << 30)
    a, b = (torch.randn(n, n, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.randn(size // 4, device=setup.device)
    target = torch.empty_like(source)
    times = timed(setup, {"mm": lambda: torch.mm(a, b, out=out), "copy": lambda: target.copy_(source)})
    setup.roofs = {
        "flops": 2 * n**3 / statistics.median(times["mm"]),
        "bytes": 2 * size / statistics.median(times["copy"]),
    }
    yield result(setup, "roof", "torch.mm", "bfloat16", [n, n, n], times["mm"], flops=2 * n**3)
    yield result(setup, "roof", "copy_", "float32", [size], times["copy"], bytes=2 * size)


def providers(setup: Setup) -> dict[str, Head]:
    """bench.heads' peers; our backends by their names."""
    found = peers(setup.device)
    del found["torch.compile"]
    if setup.device.type == "cuda":
        del found["mmfast"]  # is the first of those named
    return found if setup.dry else found | {"torch.compile": COMPILED}  # a compiler's minute is no dry run


def heads(setup: Setup) -> Iterator[Row]:
    shapes = [(64, 1000, 32)] if setup.dry else HEADS
    for dim, vocab, users in shapes:
        hidden = torch.randn(users, dim, device=setup.device, dtype=torch.bfloat16)
        weight = (torch.randn(vocab, dim, device=setup.device) * dim**-0.5).to(torch.bfloat16)
        targets = torch.randint(0, vocab, (users,), device=setup.device)
        upstream = torch.randn(users, device=setup.device)
        for train_head in (False, True):
            mode = "trained head" if train_head else "frozen head"
            if setup.late(f"linear_logprob {users}x{dim}x{vocab} {mode}"):
                continue
            heads_here = providers(setup)
            runs = working({k: step(h, hidden, weight, targets, upstream, train_head) for k, h in heads_here.items()})
            flops = 2 * users * dim * vocab * (3 if train_head else 2)
            gradients = hidden.nbytes + (weight.nbytes if train_head else 0)
            memory = {name: peak_mib(run, gradients) for name, run in runs.items()}
            for name, seconds in timed(setup, runs).items():
                yield result(setup, "linear_logprob", name, mode, [users, dim, vocab], seconds, flops=flops,
                             peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
        yield from no_gradient(setup, hidden, weight, targets)


def no_gradient(setup: Setup, hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[Row]:
    """What a reference pass runs: one GEMM pass."""
    shape = [hidden.shape[0], hidden.shape[1], weight.shape[0]]
    if setup.late(f"linear_logprob {shape} without gradient"):
        return
    runs: dict[str, Run] = {
        name: (lambda h=h: h(hidden, weight, targets))
        for name, h in providers(setup).items()
        if name != "torch.compile"
    }
    if setup.device.type == "cuda":
        runs["mmfast-triton-fused"] = lambda: linear_logprob(hidden, weight, targets, backend="triton-fused")
    with torch.no_grad():
        runs = working(runs)
        memory = {name: peak_mib(run) for name, run in runs.items()}
        times = timed(setup, runs)
    for name, seconds in times.items():
        yield result(setup, "linear_logprob", name, "no gradient", shape, seconds, flops=2 * math.prod(shape),
                     peak_mib=memory[name], dtype="bfloat16")  # fmt: skip


def selective(setup: Setup) -> Iterator[Row]:
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


def graphed(run: Run, device: torch.device) -> Run:
    """Device time alone: 100 replays of the captured launches."""
    if device.type != "cuda":
        return lambda: [run() for _ in range(100)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return lambda: [graph.replay() for _ in range(100)]


def preference(setup: Setup) -> Iterator[Row]:
    for count, length in [(2, 10)] if setup.dry else [(1, 120), (16, 120), (64, 120), (256, 120)]:
        if setup.late(f"preference_loss {count} pairs"):
            return
        entries, n = 2 * count, 2 * count * length
        logps = -torch.rand(n, device=setup.device)
        ref, w = -torch.rand(n, device=setup.device), torch.rand(n, device=setup.device) + 0.5
        responses = torch.arange(0, n + 1, length, dtype=torch.int32, device=setup.device)
        pairs = torch.arange(entries, device=setup.device).view(-1, 2)
        entry = torch.arange(entries, device=setup.device).repeat_interleave(length)
        index = torch.randperm(n, device=setup.device)
        spec = make_spec("sigmoid", pairs=count)
        leaf = logps.clone().requires_grad_()
        backend = "cuda" if setup.device.type == "cuda" else "cpu"
        common = (w, ref, responses, pairs, None, None, spec, True, backend)
        kernels = {
            "mmfast kernel": graphed(lambda c=common, x=logps: preference_raw(x, None, *c), setup.device),
            "mmfast kernel, index": graphed(lambda c=common, x=logps, i=index: preference_raw(x, i, *c), setup.device),
        }
        calls: dict[str, Run] = {
            "eager": lambda a=(leaf, ref, w, entry, entries, pairs): eager_dpo(*a, 0.1).backward(),
            "mmfast": lambda a=(leaf, ref, responses, pairs), w=w: preference_loss(*a, weights=w).loss.backward(),
        }
        for name, seconds in timed(setup, kernels).items():
            yield result(
                setup, "preference_loss", name, "device time of one call", [count, length], [s / 100 for s in seconds]
            )
        for name, seconds in timed(setup, calls).items():
            yield result(setup, "preference_loss", name, "forward+backward", [count, length], seconds)


def splice(setup: Setup) -> Iterator[Row]:
    t, d, vocab, slots = (90, 64, 100, 30) if setup.dry else (16384, 4096, 32000, 8192)
    tokens = torch.randint(0, vocab - 1, (t,), device=setup.device)
    features = torch.full((t,), -1, device=setup.device)
    features[5 : 5 + slots] = torch.arange(slots, device=setup.device)
    tokens[5 : 5 + slots] = vocab - 1
    table = torch.randn(vocab, d, device=setup.device).to(torch.bfloat16)
    images = torch.randn(slots, d, device=setup.device).to(torch.bfloat16).requires_grad_()
    upstream = torch.randn(t, d, device=setup.device).to(torch.bfloat16)
    target = torch.empty_like(upstream)
    ours = {f"mmfast-{b}": b for b in (("cuda", "triton") if setup.device.type == "cuda" else ("cpu", "torch"))}
    forward: dict[str, Run] = {"copy of the result": lambda: target.copy_(upstream)}
    both: dict[str, Run] = {}
    for name, backend in ours.items():
        forward[name] = lambda b=backend: splice_embeddings(tokens, table, images.detach(), features, backend=b)
        both[name] = lambda b=backend: torch.autograd.grad(
            splice_embeddings(tokens, table, images, features, backend=b), images, upstream
        )
    forward["embedding + masked_scatter"] = lambda: hf_merge(tokens, table, images.detach(), vocab - 1)
    both["embedding + masked_scatter"] = lambda: torch.autograd.grad(
        hf_merge(tokens, table, images, vocab - 1), images, upstream
    )
    moved = {"forward": 2 * upstream.nbytes, "forward+backward": 2 * upstream.nbytes + 2 * images.nbytes}
    for mode, runs in (("forward", forward), ("forward+backward", both)):
        runs = working(runs)
        memory = {name: peak_mib(run, upstream.nbytes) for name, run in runs.items()}
        for name, seconds in timed(setup, runs).items():
            yield result(setup, "splice_embeddings", name, mode, [t, d], seconds, bytes=moved[mode],
                         peak_mib=memory[name], dtype="bfloat16")  # fmt: skip


def dpo(setup: Setup) -> Iterator[Row]:
    """Head and DPO loss together beside Liger's, on rows without padding or prompt (its best case), no reference."""
    count, length, dim, vocab = (2, 8, 32, 200) if setup.dry else (8, 128, 4096, 32000)
    rows = 2 * count * length
    hidden = torch.randn(rows, dim, device=setup.device).to(torch.bfloat16)
    weight = (torch.randn(vocab, dim, device=setup.device) * dim**-0.5).to(torch.bfloat16)
    targets = torch.randint(0, vocab, (rows,), device=setup.device)
    ref = torch.zeros(rows, device=setup.device)
    responses = torch.arange(0, rows + 1, length, dtype=torch.int32, device=setup.device)
    pairs = torch.arange(2 * count, device=setup.device).view(2, count).T.contiguous()  # chosen first, as Liger has it

    components = pair_components(responses, pairs, None, rows)

    def ours(x: Tensor, w: Tensor, keep_budget: int | None = None) -> Tensor:
        return linear_preference_loss(
            x, w, targets, ref, responses, pairs, components=components, keep_budget=keep_budget
        ).loss

    def liger(x: Tensor, w: Tensor) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        op = LigerFusedLinearDPOLoss(use_ref_model=False, compiled=not setup.dry)
        return op(w, x.view(2 * count, length, dim), targets.view(2 * count, length))[0]

    for train_head in (False, True):
        if setup.late("linear DPO"):
            return
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_(train_head)]
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        runs = working({
            "mmfast": lambda needed=needed, leaves=leaves: torch.autograd.grad(ours(*leaves), needed),
            "LigerFusedLinearDPOLoss": lambda needed=needed, leaves=leaves: torch.autograd.grad(liger(*leaves), needed),
        })  # fmt: skip
        if train_head:  # a quarter of the rows at a time
            small = rows * vocab // 2
            runs["mmfast, four chunks"] = lambda needed=needed, leaves=leaves, small=small: torch.autograd.grad(
                ours(*leaves, small), needed
            )
        flops = 2 * rows * dim * vocab * (3 if train_head else 2)
        memory = {name: peak_mib(run, sum(t.nbytes for t in needed)) for name, run in runs.items()}
        for name, seconds in timed(setup, runs).items():
            yield result(setup, "linear DPO", name, "trained head" if train_head else "frozen head", [rows, dim, vocab],
                         seconds, flops=flops, peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
