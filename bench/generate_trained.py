"""Captions by a trained model of the world, which ends them itself: python -m bench.generate --base RUN/base/export/hf.

16 pictures, 8 samples each at temperature 0.8. Every peer draws its own, so lengths differ a little: `tokens` is the
mean of an answer. Processor time of one thread, peers interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from bench.generate import Bench
from bench.timing import interleave, summary
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.pages import png
from mmfast.world.grammar import CAPTION_PROMPTS
from mmfast.world.scenes import render, scenes

MOST = 96  # tokens


def captions(base: str, repeats: int) -> Iterator[dict[str, Any]]:
    bench = Bench("", MOST, 0, Local(base))
    engine = bench.engine
    engine.ends = engine._ends()
    bench.pictures = [Picture(scene.name, png(render(scene))) for scene in scenes(0, "test", 16)]
    asked = [bench.request(k, CAPTION_PROMPTS[0], n=8) for k in range(16)]
    asked = [replace(one, decode=Decode(temperature=0.8, max_tokens=MOST)) for one in asked]
    tokens: dict[str, list[int]] = {}

    def theirs(name: str, calls: list[list[Request]], **settings: Any) -> None:
        tokens[name] = []
        for some in calls:
            new = bench.theirs(some, do_sample=True, temperature=0.8, **settings)
            tokens[name] += [length(row, engine.ends) for row in new.tolist()]

    def ours() -> None:
        tokens["mmfast"] = [reply.tokens for reply in bench.ours(asked)]

    row, group, batch = (
        f"transformers, {how}" for how in ("a row at a time", "8 samples of a prompt", "one batch of 128")
    )
    peers: dict[str, Callable[[], None]] = {
        row: lambda: theirs(row, [[one] for one in asked]),
        group: lambda: theirs(group, [[one] for one in asked[:4]], num_return_sequences=8),
        batch: lambda: theirs(batch, [[one for one in asked for _ in range(8)]]),
        "mmfast": ours,
    }
    times = interleave(peers, repeats)
    each = {name: min(seconds.processor) / len(tokens[name]) for name, seconds in times.items()}
    run = engine.counts["rows"] + engine.counts["spare"]
    for name, seconds in times.items():
        print(f"{name}: {1e3 * each[name]:.2f} ms an answer of {sum(tokens[name]) / len(tokens[name]):.1f} tokens")
        yield {
            "op": "generate", "shape": "trained world model, 16 pictures, 8 samples", "peer": name, **summary(seconds),
            "answers": len(tokens[name]), "tokens": sum(tokens[name]) / len(tokens[name]),
            "longest": max(tokens[name]), "processor_s_an_answer": each[name],
            **{f"processor_times_{word}": each[of] / each[name]
               for word, of in (("row", row), ("group", group), ("batch", batch))},
            **({"waste": (engine.counts["spare"] + engine.counts["ended"]) / run} if name == "mmfast" else {}),
        }  # fmt: skip


def length(tokens: list[int], ends: list[int]) -> int:
    """Up to the end token."""
    return next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
