"""The pairs of bench.step: JPEGs and grammar words of known length, as text for TRL and as ids for mmfast."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfast.data.records import Branch, Example, ImageInfo


@dataclass
class Pairs:
    rows: list[dict]  # TRL's plain-text preference rows
    examples: list[Example]
    infos: dict[str, ImageInfo]
    pictures: dict[str, bytes]  # JPEG: both sides decode them in every step, as training does


def make_pairs(
    processor, *, groups: int, responses: int, words: tuple[int, int], question: int, seed: int = 0
) -> Pairs:
    """`groups` images with `responses` answers each, and every pair of answers."""
    tokenizer = processor.tokenizer
    rng = random.Random(seed)
    vocabulary = one_token_words(tokenizer)
    made = Pairs([], [], {}, {})
    for g in range(groups):
        name = f"image {g}"
        made.pictures[name] = jpeg(seed, g)
        prompt = "<s>USER: <image>\n" + "".join(rng.choices(vocabulary, k=question)) + " ASSISTANT:"
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        answers = ["".join(rng.choices(vocabulary, k=rng.randint(*words))) + "</s>" for _ in range(responses)]
        ids = [tokenizer(a, add_special_tokens=False).input_ids for a in answers]
        branches = [
            Branch(
                ids=np.asarray(prompt_ids + a, np.int32),
                images=(name,),
                spans=((len(prompt_ids), len(prompt_ids) + len(a)),),
            )
            for a in ids
        ]
        for a in range(responses):
            for b in range(a + 1, responses):
                number = str(len(made.examples))
                made.examples.append(Example(id=number, source=number, chosen=branches[a], rejected=branches[b]))
                picture = {"bytes": made.pictures[name], "path": None}
                made.rows.append({"images": [picture], "prompt": prompt, "chosen": answers[a], "rejected": answers[b]})
    return made


def jpeg(seed: int, number: int) -> bytes:
    """A picture of 640 x 480 of about a photograph's size in bytes: smooth noise, coarse and fine."""
    rng = np.random.default_rng([seed, number])
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).resize((640, 480)), np.float32)
        for h, w in ((4, 6), (30, 40), (240, 320))
    ]
    mixed = 0.6 * layers[0] + 0.3 * layers[1] + 0.1 * layers[2]
    file = io.BytesIO()
    Image.fromarray(mixed.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def one_token_words(tokenizer) -> list[str]:
    """Words that stay one token each when written one after another."""
    words = [tokenizer.convert_tokens_to_string([t]) for t in tokenizer.get_vocab() if t.startswith("Ġ")]
    return sorted(
        w for w in words if w.strip().isalpha() and len(tokenizer(w, add_special_tokens=False).input_ids) == 1
    )


def infos_of(adapter, processor, made: Pairs) -> dict[str, ImageInfo]:
    found = {}
    for name, encoded in made.pictures.items():
        picture = Image.open(io.BytesIO(encoded))
        images = load_images(processor, made, [name])
        grid = tuple(images["image_grid_thw"][0].tolist()) if "image_grid_thw" in images else None
        found[name] = ImageInfo(
            id=name,
            source=name,
            width=picture.width,
            height=picture.height,
            tokens=adapter.rows_of(images)[0],
            grid=grid,
        )
    return found


def load_images(processor, made: Pairs, names: list[str]) -> dict[str, Tensor]:
    pictures = [Image.open(io.BytesIO(made.pictures[n])).convert("RGB") for n in names]
    inputs = processor.image_processor(pictures, return_tensors="pt")
    return {n: t for n, t in inputs.items() if torch.is_tensor(t)}
