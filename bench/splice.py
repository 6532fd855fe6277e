"""splice_embeddings beside the embedding and masked_scatter of Hugging Face models, and a bare copy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.device import Row, Run, Setup, result, timed
from bench.logprob import working
from bench.timing import compared, interleave, peak_mib
from mmfast.ops.splice import splice_embeddings


def hf_merge(tokens: Tensor, table: Tensor, images: Tensor, image_token: int) -> Tensor:
    """Embedding, then masked_scatter over an expanded mask."""
    embedded = F.embedding(tokens, table)
    mask = (tokens == image_token)[:, None].expand_as(embedded)
    return embedded.masked_scatter(mask, images)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """LLaVA-1.5: images of 576 rows in streams of T tokens; a frozen table. The floor is a copy of the result."""
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

            def ours(a=(tokens, table, images, features)) -> Tensor:
                return splice_embeddings(*a)

            def theirs(a=(tokens, table, images)) -> Tensor:
                return hf_merge(*a, 999)

            forward = {
                "embedding + masked_scatter": lambda f=theirs: f().detach(),
                "mmfast": lambda f=ours: f().detach(),
                "copy": lambda s=source, t=target: t.copy_(s),
                "copy into new memory": lambda s=source: s.clone(),
            }
            both = {
                "embedding + masked_scatter": lambda f=theirs, i=images, g=grad: torch.autograd.grad(f(), i, g),
                "mmfast": lambda f=ours, i=images, g=grad: torch.autograd.grad(f(), i, g),
                "copy": lambda s=source, t=target, o=out: (t.copy_(s), o.copy_(s[: len(o)])),
                "copy into new memory": lambda s=source, o=out: (s.clone(), s[: len(o)].clone()),
            }
            for mode, runs in (("forward", forward), ("forward+backward", both)):
                yield from compared("splice_embeddings", shape, interleave(runs, max(options.repeats, 9)), "copy",
                                   mode=mode, dtype=str(dtype).removeprefix("torch."))  # fmt: skip


def device_rows(setup: Setup) -> Iterator[Row]:
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
