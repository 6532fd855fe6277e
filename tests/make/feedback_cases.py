"""Folders of answers, as `mmfast generate` writes them, and runs of the stages over them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from mmfast.feedback.check import check
from mmfast.feedback.decompose import decompose, planned
from mmfast.feedback.panel import Panel
from mmfast.feedback.routing import open_experts, read_routing
from mmfast.job.runtime import join
from mmfast.world.dataset import flawed_caption
from mmfast.world.grammar import CAPTION_PROMPTS, Flaws, caption


def write_answers(folder: Path, answers: Iterable[tuple[Path, str]], question: str = "Describe the image.") -> Path:
    """(image, text) each; those of an image are a group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"stage": "generate", "complete": True}))
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    with (folder / "rows-0.jsonl").open("w") as file:
        for number, (image, text) in enumerate(answers):
            row: dict[str, Any] = {"key": hashlib.sha256(f"{number}:{text}".encode()).hexdigest() + ".0", "row": number}
            row |= {"group": image.stem, "images": [str(image)], "prompt": prompt, "answer": text, "finish": "stop"}
            file.write(json.dumps(row) + "\n")
    return folder


def write_captions(folder: Path, world: Path, scenes: Iterable[Any], each: int = 3) -> Path:
    """Captions of the world's scenes, the true one first and then flawed ones."""
    answers = []
    for scene in scenes:
        rng = random.Random(f"captions:{scene.name}")
        said = [caption(scene, rng, Flaws.none())]
        said += [made for _ in range(each - 1) if (made := flawed_caption(scene, rng, Flaws())) is not None]
        answers += [(world / "images" / f"{scene.name}.png", one.text) for one in said]
    return write_answers(folder, answers, CAPTION_PROMPTS[0])


def decomposed(source: Path, out: Path, engine: Any, preset: str = "dgpref", **options: Any) -> Any:
    run = {name: options.pop(name) for name in ("limit", "debug") if name in options}
    with closing(join()) as runtime:
        return decompose(source, out, engine, planned(preset, **options), runtime, **run)


def checked(source: Path, out: Path, table: str | Path, engine: Any = None, **options: Any) -> Any:
    """`engine`: what experts ask that name none."""
    panel = Panel(open_experts(read_routing(str(table)), lambda given: engine))
    with closing(join()) as runtime:
        return check(source, out, panel, runtime, **options)
