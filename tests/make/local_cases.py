"""Requests over noise pictures for tiny models of every family, and their twin: transformers' own generate."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmfast.data.symbols import expanded
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.models.attention import attention
from mmfast.models.proof import own_inputs
from mmfast.world import models as world

SHAPES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen", "gemma3", "llama")
WORDS = ("what is", "the red", "blue star", "circle", "picture", "of two", "and", "left", "right", "how many", "small")


def model_folder(folder: Path, family: str, **dials) -> Path:
    return world.tiny_model(family, folder / family, **dials)


def picture(number: int) -> Picture:
    size = [(84, 84), (120, 60), (56, 84), (100, 100), (70, 140)][number % 5]
    noise = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return Picture(f"{number}.png", out.getvalue())


def question(generator: random.Random) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(2, 9)))


def request(key: str, text: str, *pictures: Picture, **fields) -> Request:
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    return Request(key=key, messages=({"role": "user", "content": content},), images=pictures, **fields)


def requests(family: str, count: int, seed: int = 0, **decode) -> list[Request]:
    """Several questions on each picture, some on two pictures, some on none, their answers of mixed lengths."""
    generator, out = random.Random(seed), []
    for number in range(count):
        shown = [] if family == "llama" or number % 7 == 6 else [picture(number // 3)]
        shown += [picture(number // 3 + 1)] if number % 5 == 4 and shown else []
        settings = Decode(**{"max_tokens": generator.choice([3, 9, 40]), **decode})
        out.append(request(f"row {number}", question(generator), *shown, decode=settings))
    return out


def easy_ends(engine: Local, rows: list[Request]) -> None:
    """Answers of random models hardly ever end: some of the tokens that they do write become end tokens too."""
    for one in rows[::3]:
        tokens = twin(engine, one)
        if len(tokens) > 4:
            engine.ends.append(tokens[len(tokens) // 3])


def answered(engine: Local, rows: list[Request]) -> dict[tuple[str, int], tuple[list[int], float, str]]:
    """(tokens, log-prob, finish) by (key, sample). Tokens are compared, so answers are caught before they are text."""
    found, reply = {}, engine._reply

    def caught(answer):
        found[answer.of.prompt.key, answer.sample] = (list(answer.tokens), answer.logp, answer.finish)
        return reply(answer)

    engine._reply = caught
    replies = list(engine.answer(rows))
    del engine._reply
    assert not [r.error for r in replies if r.error]
    given = {(reply.key, reply.sample) for reply in replies}  # in turns a rank does others' work too
    return {name: one for name, one in found.items() if name in given}


def plain_inputs(engine: Local, one: Request, after: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """What the model's own forward takes of a request, and of ids that follow it."""
    prompt = engine.prompts.read(one)
    branch = prompt.example([*after, engine.ends[0]]).chosen
    ids = expanded(branch, engine.prompts.infos, engine.prompts.image_id)[0][:-1]
    images = engine.prompts.load_images(prompt.pictures) if prompt.images else {}
    return own_inputs(engine.scorer, ids, images, engine.scorer.dtype)


def twin(engine: Local, one: Request, *, every: bool = False, do_sample: bool = False, **settings) -> list:
    """The tokens of transformers' generate on the unpatched model; `every`: of all returned sequences."""
    inputs = plain_inputs(engine, one)
    model = engine.scorer.model
    if len(inputs.get("image_sizes", ())) == 1:  # transformers 5.17 repeats tiles for the beams
        inputs["pixel_values"] = inputs["pixel_values"][None]
    with attention(engine.scorer.decoder.config, engine.scorer.own_attention), torch.no_grad():
        model.generation_config.eos_token_id = engine.ends
        out = model.generate(**inputs, max_new_tokens=one.decode.max_tokens, do_sample=do_sample, **settings)
    tokens = out[:, inputs["input_ids"].shape[1] :].tolist()
    return tokens if every else tokens[0]
