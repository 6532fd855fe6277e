"""tree_attention on the runs of a training step: on a CPU our kernel beside the loop over torch's, on a GPU what is
installed there beside a row an answer, as trainers without a tree have it, and flex_attention."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.device import Setup, result, timed
from bench.logprob import working
from bench.timing import Run, compared, gradient, interleave, peak_mib
from mmfast.ops.attention import explain, tree_attention
from mmfast.ops.attention_exact import run_mask
from mmfast.ops.rows import invert

Row = dict[str, Any]
SHARED = 6  # tokens with which every prompt begins
Prompts = Sequence[tuple[int, ...]]  # of each prompt its tokens, then its responses'
PAIRS: Prompts = [(630, 43, 43), (651, 35, 35), (620, 73, 73), (620, 73, 73)]
GROUP: Prompts = [(640, *range(30, 62, 4))]
LONG: Prompts = [(1400, *range(200, 520, 40))]  # a large image and eight long answers


def runs_of(prompts: Prompts) -> dict[str, Any]:
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
    q_offsets, keys = torch.tensor(q, dtype=torch.int32), torch.tensor([0, *map(len, k_index)], dtype=torch.int32)
    return {
        "q_offsets": q_offsets, "k_index": index, "k_offsets": keys.cumsum(0, dtype=torch.int32), "k_copies": copies,
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


def seen(runs: dict[str, Any], tokens: int, device: torch.device) -> Tensor:
    """Which key each query of the stream may see, [T,T]."""
    mask = torch.zeros(tokens, tokens, dtype=torch.bool, device=device)
    q, k = runs["q_offsets"].tolist(), runs["k_offsets"].tolist()
    for m in range(len(q) - 1):
        keys = runs["k_index"][k[m] : k[m + 1]]
        allowed = run_mask(q[m + 1] - q[m], len(keys), 0, device)
        mask[q[m] : q[m + 1], keys] = True if allowed is None else allowed
    return mask


def flex(mask: Tensor, dry: bool) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    queries, keys = mask.shape
    blocks = create_block_mask(lambda b, h, q, k: mask[q, k], None, None, queries, keys, device=str(mask.device))
    compiled: Any = flex_attention if dry else torch.compile(flex_attention)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stream = (x.transpose(0, 1)[None] for x in (q, k, v))
        out: Tensor = compiled(*stream, block_mask=blocks, enable_gqa=True)[0]
        return out.transpose(0, 1)

    return call


def answer_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A row an answer, [B,L,H,Dh]: its prompt again, then itself, padded to the longest."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def device_rows(setup: Setup) -> Iterator[Row]:
    """Heads as LLaVA-1.5-7B's and Qwen2.5-VL-7B's, bf16. flops counts the scores that the tree needs, for everybody."""
    sizes = [(name, prompts, heads, kv_heads, 128) for heads, kv_heads in ((32, 32), (28, 4))
             for name, prompts in (("pairs", PAIRS), ("group", GROUP), ("long group", LONG))]  # fmt: skip
    if setup.dry:
        sizes = [("pairs", [(40, 5, 7), (30, 9, 3)], 4, 2, 16)]
    for name, prompts, heads, kv_heads, width in sizes:
        if setup.late(f"tree_attention {name}"):
            return
        # The stream of the tree, and the same answers as rows.
        host = runs_of(prompts)
        tokens, answers = int(host["q_offsets"][-1]), sum(len(p) - 1 for p in prompts)
        runs: dict[str, Any] = {k: v.to(setup.device) if isinstance(v, Tensor) else v for k, v in host.items()}
        mask = seen(runs, tokens, setup.device)
        dtype = torch.float32 if setup.dry else torch.bfloat16
        make = partial(torch.randn, device=setup.device, dtype=dtype, requires_grad=True)
        stream = [make(tokens, h, width) for h in (heads, kv_heads, kv_heads)]
        padded = [make(answers, max(p[0] + max(p[1:]) for p in prompts), h, width) for h in (heads, kv_heads, kv_heads)]
        # Everybody's call, forward alone and with its backward pass.
        here = [b for b, why in explain(setup.device, dtype, width).items() if not why]
        calls: dict[str, tuple[Any, list[Tensor]]] = {
            f"mmfast-{b}": (partial(tree_attention, backend=b, **runs), stream) for b in here
        }
        calls["flex_attention"] = (flex(mask, setup.dry), stream)
        calls["a row an answer"] = (answer_rows, padded)
        scores = 4 * width * heads * int(mask.sum())
        for mode, passes in (("forward", 1.0), ("forward+backward", 3.5)):
            measured: dict[str, Run] = {}
            for peer, (call, inputs) in calls.items():
                upstream = torch.randn_like(inputs[0])
                whole = partial(gradient, call, inputs, *inputs, upstream=upstream)
                measured[peer] = partial(torch.no_grad()(call), *inputs) if passes == 1 else whole
            measured = working(measured)
            memory = {peer: peak_mib(run) for peer, run in measured.items()}
            for peer, seconds in timed(setup, measured).items():
                yield result(setup, "tree_attention", peer, mode, [tokens, heads, kv_heads, width], seconds, what=name,
                             flops=int(passes * scores), peak_mib=memory[peer], dtype=str(dtype)[6:])  # fmt: skip
