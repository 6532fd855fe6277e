"""Folders of answers about the world's pictures, and engines that judge them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mmfast.engines.base import Reply
from mmfast.engines.presets import planned
from mmfast.engines.world import World
from mmfast.job.runtime import join
from mmfast.world.dataset import read_lines
from mmfast.world.grammar import errors
from mmfast.world.scenes import Scene
from tests.make.engine_cases import Fake, answers


def captions(world: Path, out: Path, *, preset: str = "", samples: int = 4, noise: float = 0.6) -> Path:
    """Captions of the world's test pictures, some of them wrong."""
    plan = planned(preset, samples=samples) if preset else planned(temperature=1.0, samples=samples)
    answers(world / "test.jsonl", out, World(world, noise=noise), plan)
    return out


def told(rows: Iterable[dict], world: Path) -> dict[str, int]:
    """key -> how many claims of the answer are false."""
    scenes = {line["name"]: Scene.from_annotation(line) for line in read_lines(world / "annotation.jsonl")}
    return {
        row["key"]: sum(errors(row["answer"], scenes[Path(row["images"][0]).stem]).values()) for row in rows
    }  # fmt: skip


def written(folder: Path, groups: list[list[str]], **fields) -> Path:
    """A folder of answers as `generate` leaves it: a list of texts a question, no images."""
    folder.mkdir()
    rows = [
        {"key": f"k{g}.{n}", "group": f"g{g}", "prompt_id": f"p{g}", "images": [],
         "prompt": [{"role": "user", "content": f"question {g}?"}], "answer": text, "decode": "sample", "sample": n,
         "finish": "stop", "meta": {}, "row": g} | {k: v[g][n] for k, v in fields.items()}
        for g, texts in enumerate(groups) for n, text in enumerate(texts)
    ]  # fmt: skip
    (folder / "rows-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text(json.dumps({"stage": "generate", "complete": True}))
    return folder


class Says(Fake):
    """Replies by a function of the request, with labels by another; counts what it is asked."""

    can = Fake.can | {"prefix"}

    def __init__(self, say=None, labels=None, **options) -> None:
        super().__init__(**options)
        self.say, self.labels = say, labels

    def reply(self, request, sample):
        if request.labels:
            return Reply(key=request.key, labels=self.labels(request))
        text = self.say(request)
        return text if isinstance(text, Reply) else Reply(key=request.key, text=text, tokens=1)


def stage(run, *arguments, **options):
    """What a command does, without its options."""
    runtime = join()
    try:
        return run(*arguments, runtime, **options)
    finally:
        runtime.close()
