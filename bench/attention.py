"""tree_attention on a CPU: our kernel beside the loop over torch's, on the runs of a training step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.timing import Run, compared, gradient, interleave
from mmfast.ops.attention import tree_attention
from mmfast.ops.rows import invert

Row = dict[str, Any]
SHARED = 6  # tokens with which every prompt begins
PAIRS = [(630, 43, 43), (651, 35, 35), (620, 73, 73), (620, 73, 73)]  # a prompt's tokens, then its responses'
GROUP = [(640, *range(30, 62, 4))]


def runs_of(prompts: list[tuple[int, ...]]) -> dict[str, Any]:
    """The offsets and indices of a Pack of these. A prompt and its first response are one run."""
    q, k_index, at = [0], [], 0
    for number, (prompt, *responses) in enumerate(prompts):
        head = torch.arange(SHARED if number else 0)  # what an earlier prompt has run already
        path = torch.cat([head, torch.arange(at, at + prompt - len(head))])
        at += prompt - len(head)
        for response in responses:
            k_index.append(torch.cat([path, torch.arange(at, at + response)]))
            at += response
            q.append(at)
    index = torch.cat(k_index)
    copies, copy_offsets = invert(index, at)
    q_offsets, keys = torch.tensor(q), torch.tensor([0, *map(len, k_index)])
    return {
        "q_offsets": q_offsets, "k_index": index, "k_offsets": keys.cumsum(0), "k_copies": copies,
        "k_copy_offsets": copy_offsets, "max_q": int(q_offsets.diff().max()), "max_k": int(keys.max()),
    }  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The decoder of bench.step's 64M LLaVA, and heads as a Qwen2.5-VL-7B's (fp32). Each pass has a row of its own."""
    sizes = [("pairs", PAIRS, 8, 8, 64), ("group", GROUP, 8, 8, 64), ("pairs", PAIRS, 28, 4, 128)]
    if options.quick:
        sizes = [("pairs", [(40, 5, 7), (30, 9, 3)], 4, 2, 32)]
    for name, prompts, heads, kv_heads, width in sizes:
        g = torch.Generator().manual_seed(0)
        runs = runs_of(prompts)
        tokens = int(runs["q_offsets"][-1])
        make = partial(torch.randn, generator=g, requires_grad=True)
        q, k, v = (make(tokens, h, width) for h in (heads, kv_heads, kv_heads))
        upstream = torch.randn(q.shape, generator=g)
        forward: dict[str, Run] = {}
        both: dict[str, Run] = {}
        for peer, backend in (("mmfast", "cpu"), ("loop", "loop")):
            call = partial(tree_attention, backend=backend, **runs)
            forward[peer] = partial(torch.no_grad()(call), q, k, v)
            both[peer] = partial(gradient, call, [q, k, v], q, k, v, upstream=upstream)
        shape = f"{name}:T={tokens},Hq={heads},Hkv={kv_heads},Dh={width}"
        for mode, measured in (("forward", forward), ("forward+backward", both)):
            yield from compared("tree_attention", shape, interleave(measured, options.repeats), "loop", mode=mode,
                                dtype="float32")  # fmt: skip
