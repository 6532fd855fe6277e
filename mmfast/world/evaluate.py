"""How much a model hallucinates: CHAIR of its greedy captions of held-out pictures, exact from the annotation.

CHAIR_i  share of mentioned objects that are not in the picture (an object is a coloured shape; once a caption)
CHAIR_s  share of captions that mention such an object
recall   share of the objects in the pictures that are mentioned
A lower CHAIR is worth nothing if the model has merely learnt to say less: recall and length stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .grammar import CAPTION_PROMPTS, claims, errors
from .scenes import Scene, render


@dataclass(frozen=True, slots=True)
class Score:
    chair_i: float
    chair_s: float
    recall: float
    words: float  # mean length of a caption
    wrong_counts: float  # wrong claims a caption, of each further kind of flaw
    wrong_relations: float
    wrong_words: float
    captions: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def score(captions: Sequence[str], scenes: Sequence[Scene]) -> Score:
    if len(captions) != len(scenes) or not captions:
        raise ValueError(f"{len(captions)} captions for {len(scenes)} scenes: they must match, and not be empty")
    mentioned = invented = inventive = recalled = present = 0
    wrong = {"count": 0, "relation": 0, "word": 0}
    for text, scene in zip(captions, scenes, strict=True):
        kinds = set(claims(text).kinds)
        mentioned += len(kinds)
        invented += len(kinds - scene.kinds)
        inventive += bool(kinds - scene.kinds)
        recalled += len(kinds & scene.kinds)
        present += len(scene.kinds)
        found = errors(text, scene)
        for flaw in wrong:
            wrong[flaw] += found[flaw]
    n = len(captions)
    return Score(
        chair_i=invented / max(mentioned, 1),
        chair_s=inventive / n,
        recall=recalled / present,
        words=sum(len(text.split()) for text in captions) / n,
        wrong_counts=wrong["count"] / n,
        wrong_relations=wrong["relation"] / n,
        wrong_words=wrong["word"] / n,
        captions=n,
    )


@torch.no_grad()
def greedy_captions(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    *,
    prompt: str = CAPTION_PROMPTS[0],
    batch: int = 64,
    max_new_tokens: int = 96,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy captions by transformers' own generate, in batches padded on the left."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts: list[str] = []
    for start in range(0, len(scenes), batch):
        images = [render(scene) for scene in scenes[start : start + batch]]
        inputs = processor(
            text=[text] * len(images), images=images, return_tensors="pt", padding=True, add_special_tokens=False
        )
        inputs = inputs.to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        made = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answers = made[:, inputs["input_ids"].shape[1] :]
        texts += [t.strip() for t in processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]
        if progress:
            progress(len(texts), len(scenes))
    return texts


def load(path: str | Path, device: str = "cpu") -> tuple[Any, Any]:
    """(model, processor) of a model directory."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).to(device).eval()
    return model, AutoProcessor.from_pretrained(path)
