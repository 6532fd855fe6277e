"""An engine whose replies are known, and inputs for it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mmfast.engines.base import Reply, Request
from mmfast.engines.generate import generate
from mmfast.engines.presets import Plan, planned
from mmfast.engines.stage import Tally
from mmfast.job.runtime import join

ALL = frozenset({"sample", "repetition_penalty", "beams", "stop", "labels", "logp", "images"})


class Fake:
    """Its replies follow from the key and sample alone, come in batches and out of order. `wrong`: words of a prompt
    that it fails at. `dies`: after so many replies the process is killed; `asks` counts requests."""

    can = ALL

    def __init__(self, *, name: str = "fake", batch: int = 5, wrong: str = "", dies: int = 0, stops: int = 0) -> None:
        self.name, self.batch, self.wrong, self.dies, self.stops = name, batch, wrong, dies, stops
        self.asks = self.given = 0

    def identity(self) -> dict:
        return {"engine": self.name, "dtype": "float32"}

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        held: list[Reply] = []
        for request in requests:
            self.asks += 1
            held += [self.reply(request, sample) for sample in range(max(request.n, 1))]
            if len(held) >= self.batch:
                yield from self.let_out(held)
                held = []
        yield from self.let_out(held)

    def let_out(self, held: list[Reply]) -> Iterator[Reply]:
        for reply in reversed(held):
            self.given += 1
            if self.dies and self.given > self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.stops and self.given > self.stops:
                raise KeyboardInterrupt
            yield reply

    def reply(self, request: Request, sample: int) -> Reply:
        said = json.dumps(request.messages)
        if self.wrong and self.wrong in said:
            return Reply(key=request.key, sample=sample, finish="error", error="the prompt is longer than the window")
        number = int(hashlib.sha256(f"{request.key}{sample}".encode()).hexdigest()[:6], 16)
        finish = "length" if number % 7 == 0 else "stop"
        text = "" if number % 11 == 0 else f"answer {number % 500} – ö"
        return Reply(key=request.key, sample=sample, text=text, tokens=number % 9 + 1, logp=-1.5, finish=finish)


def write_prompts(folder: Path, number: int = 12, pictures: int = 4, name: str = "prompts.jsonl") -> Path:
    """Questions about a few pictures; every fifth is about none."""
    for k in range(pictures):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    rows = [
        {"id": f"q{n}", "question": f"What is here? {n}", "kept": n}
        | ({} if n % 5 == 4 else {"image": f"{n % pictures}.png"})
        for n in range(number)
    ]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(source: Path, out: Path, engine: Fake | None = None, plan: Plan | None = None, **options) -> Tally:
    """What the command does, without its options."""
    runtime = join()
    plan = plan or planned(temperature=1.0, samples=3)
    try:
        return generate(source, out, engine or Fake(), plan, runtime, **options)
    finally:
        runtime.close()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
