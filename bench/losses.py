"""preference_loss, splice_embeddings and changed_segments beside their peers (suites of bench.ops)."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timing import Run, interleave, summary
from mmfast.ops.preference import preference_loss, preference_raw
from mmfast.ops.preference_math import make_spec
from mmfast.ops.segments import changed_flags
from mmfast.ops.splice import splice_embeddings

Row = dict[str, Any]


def rows_of(op: str, shape: str, times: Mapping[str, list[float]], floor: str, **more: Any) -> Iterator[Row]:
    """One row a run; each carries its ratio to the floor or peer named `floor`, of the same interleaved rounds."""
    best = min(times[floor])
    for peer, seconds in times.items():
        yield {"op": op, "peer": peer, "shape": shape, **more, **summary(seconds), f"x_{floor}": min(seconds) / best}


def eager_dpo(logps: Tensor, ref: Tensor, w: Tensor, entry: Tensor, entries: int, pairs: Tensor, beta: float) -> Tensor:
    """What a careful user writes: two segment sums, a log-sigmoid, the metrics TRL logs."""
    s = torch.zeros(entries, dtype=logps.dtype, device=logps.device).index_add(0, entry, w * logps)
    s_ref = torch.zeros_like(s).index_add(0, entry, w * ref)
    ratio = s - s_ref
    chosen, rejected = ratio[pairs[:, 0]], ratio[pairs[:, 1]]
    loss = -F.logsigmoid(beta * (chosen - rejected)).sum() / len(pairs)
    with torch.no_grad():
        rewards = beta * chosen, beta * rejected
        metrics = rewards[0] - rewards[1], s[pairs[:, 0]], s[pairs[:, 1]], rewards[0] > rewards[1]
    assert len(metrics) == 4
    return loss


def backward(loss: Callable[[], Tensor]) -> None:
    loss().backward()


def hundred(run: Run) -> None:
    for _ in range(100):
        run()


def preference_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Whole calls with backward; and the kernel alone. A round is 100 calls."""
    for pairs_count, length in [(4, 120)] if options.quick else [(1, 120), (4, 120), (16, 150), (64, 150)]:
        entries = 2 * pairs_count
        n = entries * length
        g = torch.Generator().manual_seed(0)
        logps = (-torch.rand(n, generator=g)).requires_grad_()
        ref, w = -torch.rand(n, generator=g), torch.rand(n, generator=g) + 0.5
        responses = torch.arange(0, n + 1, length, dtype=torch.int32)
        pairs = torch.arange(entries).view(-1, 2)
        entry = torch.arange(entries).repeat_interleave(length)
        spec = make_spec("sigmoid", pairs=pairs_count)
        raw = (logps.detach(), None, w, ref, responses, pairs, None, None, spec)
        ours = partial(preference_loss, logps, ref, responses, pairs, weights=w)
        runs: dict[str, Run] = {
            "eager": partial(backward, partial(eager_dpo, logps, ref, w, entry, entries, pairs, 0.1)),
            "mmfast": partial(lambda loss: loss().loss.backward(), ours),
            "mmfast kernel": partial(preference_raw, *raw, True, "cpu"),
        }
        rounds = interleave({name: partial(hundred, run) for name, run in runs.items()}, options.repeats)
        times = {name: [t / 100 for t in seconds] for name, seconds in rounds.items()}
        yield from rows_of("preference_loss", f"P={pairs_count},L={length}", times, "eager", mode="forward+backward")


def hf_merge(tokens: Tensor, table: Tensor, images: Tensor, image_token: int) -> Tensor:
    """Embedding, then masked_scatter over an expanded mask."""
    embedded = F.embedding(tokens, table)
    mask = (tokens == image_token)[:, None].expand_as(embedded)
    return embedded.masked_scatter(mask, images)


def gradient(value: Callable[[], Tensor], images: Tensor, upstream: Tensor) -> None:
    torch.autograd.grad(value(), images, upstream)


def copies(source: Tensor, *targets: Tensor) -> None:
    for target in targets:
        target.copy_(source[: len(target)])


def clones(source: Tensor, images: int) -> tuple[Tensor, Tensor]:
    return source.clone(), source[:images].clone()


def splice_rows(options: argparse.Namespace) -> Iterator[Row]:
    """LLaVA-1.5: images of 576 rows in streams of T tokens; a frozen table. The floor is a copy of the result."""
    repeats = options.repeats if options.quick else max(options.repeats, 9)
    for dtype in (torch.float32, torch.bfloat16):
        for t, d in [(876, 256)] if options.quick else [(876, 4096), (2628, 4096)]:
            count = t // 876
            g = torch.Generator().manual_seed(0)
            tokens = torch.randint(0, 999, (t,), generator=g)
            features = torch.full((t,), -1)
            for i in range(count):
                features[i * 876 + 5 : i * 876 + 581] = torch.arange(576) + 576 * i
            tokens[features >= 0] = 999
            table = torch.randn(1000, d, generator=g).to(dtype)
            images = torch.randn(576 * count, d, generator=g).to(dtype).requires_grad_()
            grad = torch.randn(t, d, generator=g).to(dtype)
            source, target = grad.clone(), torch.empty_like(grad)
            out = torch.empty_like(images)
            shape = f"T={t},D={d}"
            theirs = partial(hf_merge, tokens, table, images, 999)
            ours = partial(splice_embeddings, tokens, table, images, features)
            forward: dict[str, Run] = {
                "embedding + masked_scatter": theirs,
                "mmfast": ours,
                "copy": partial(target.copy_, source),
                "copy into new memory": source.clone,
            }
            both: dict[str, Run] = {
                "embedding + masked_scatter": partial(gradient, theirs, images, grad),
                "mmfast": partial(gradient, ours, images, grad),
                "copy": partial(copies, source, target, out),
                "copy into new memory": partial(clones, source, len(out)),
            }
            for mode, runs in (("forward", forward), ("forward+backward", both)):
                yield from rows_of("splice_embeddings", shape, interleave(runs, repeats), "copy",
                                   mode=mode, dtype=str(dtype).removeprefix("torch."))  # fmt: skip


def text_like(r: random.Random, size: int) -> list[int]:
    return [int(3000 * r.random() ** 3) for _ in range(size)]


def segment_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Edited text-like pairs of 250 tokens; times are a pair's, difflib and ours turn by turn."""
    r = random.Random(0)
    pairs = []
    for _ in range(50 if options.quick else 300):
        b = text_like(r, 250)
        a = list(b)
        for _ in range(r.randint(1, 5)):
            at = r.randrange(240)
            a[at : at + r.randint(1, 6)] = text_like(r, r.randint(1, 6))
        pairs.append((np.array(a, dtype=np.int32), np.array(b, dtype=np.int32)))
    for autojunk in (True, False):
        times: dict[str, list[float]] = {"difflib": [], "mmfast": []}
        for pair in pairs:
            for name, backend in (("difflib", "python"), ("mmfast", "cpu")):
                best = float("inf")
                for _ in range(3):
                    start = time.perf_counter()
                    changed_flags(*pair, autojunk=autojunk, backend=backend)
                    best = min(best, time.perf_counter() - start)
                times[name].append(best)
        for row in rows_of("changed_segments", "250 tokens", times, "difflib", mode=f"autojunk={autojunk}"):
            median = row["median_s"] / float(np.median(times["difflib"]))
            yield {**row, "x_difflib": median}
