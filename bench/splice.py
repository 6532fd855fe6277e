"""splice_embeddings beside the embedding and masked_scatter of Hugging Face models, and a bare copy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.device import Row, Run, Setup, result, timed
from bench.logprob import working
from bench.timing import compared, gradient, interleave, peak_mib
from mmfast.ops.splice import splice_embeddings


def hf_merge(tokens: Tensor, table: Tensor, images: Tensor, image_token: int) -> Tensor:
    """Embedding, then masked_scatter over an expanded mask."""
    embedded = F.embedding(tokens, table)
    mask = (tokens == image_token)[:, None].expand_as(embedded)
    return embedded.masked_scatter(mask, images)


def copies(source: Tensor, target: Tensor | None, part: Tensor) -> None:
    """What the forward and the backward pass move, copied: into memory that is there, or into new memory."""
    if target is None:
        _ = source.clone(), source[: len(part)].clone()
    else:
        target.copy_(source), part.copy_(source[: len(part)])


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

            theirs, ours = partial(hf_merge, tokens, table, images, 999), partial(splice_embeddings, tokens, table)
            forward: dict[str, Run] = {
                "embedding + masked_scatter": theirs,
                "mmfast": partial(ours, images, features),
                "copy": partial(target.copy_, source),
                "copy into new memory": source.clone,
            }
            both: dict[str, Run] = {
                "embedding + masked_scatter": partial(gradient, theirs, [images], upstream=grad),
                "mmfast": partial(gradient, ours, [images], images, features, upstream=grad),
                "copy": partial(copies, source, target, out),
                "copy into new memory": partial(copies, source, None, out),
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
    forward: dict[str, Run] = {"copy of the result": partial(target.copy_, upstream)}
    both: dict[str, Run] = {}
    for name, backend in ours.items():
        call = partial(splice_embeddings, tokens, table, backend=backend)
        forward[name] = partial(call, images.detach(), features)
        both[name] = partial(gradient, call, [images], images, features, upstream=upstream)
    forward["embedding + masked_scatter"] = partial(hf_merge, tokens, table, images.detach(), vocab - 1)
    both["embedding + masked_scatter"] = partial(
        gradient, hf_merge, [images], tokens, table, images, vocab - 1, upstream=upstream
    )
    moved = {"forward": 2 * upstream.nbytes, "forward+backward": 2 * upstream.nbytes + 2 * images.nbytes}
    for mode, runs in (("forward", forward), ("forward+backward", both)):
        runs = working(runs)
        memory = {name: peak_mib(run, upstream.nbytes) for name, run in runs.items()}
        for name, seconds in timed(setup, runs).items():
            yield result(setup, "splice_embeddings", name, mode, [t, d], seconds, bytes=moved[mode],
                         peak_mib=memory[name], dtype="bfloat16")  # fmt: skip
