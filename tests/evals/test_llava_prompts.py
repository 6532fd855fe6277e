"""What a model is shown for each benchmark is what LLaVA's own loaders show it: text, token ids and pixels. So too
RLAIF-V's loader, and the text of FastChat's two turns.

golden/prompts was made by running the loaders (golden/README.md) on items of our own wording; ids with LLaVA-1.5's own
tokenizer, which is looked for above this folder as shared/tokenizers/llava15.
"""

import base64
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mmfast.data.images.processor import ImageProcessor
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.evals.benches import benches
from tests.make.llama_tokenizer import llama_tokenizer
from tests.make.marking import asked, golden, stored

EXPECTED, PIXELS = (golden(f"prompts/{name}.json") for name in ("expected", "pixels"))
PLACES = [place / "shared" / "tokenizers" / "llava15" for place in Path(__file__).parents]
REAL = next((place for place in PLACES if place.exists()), None)


@cache
def tokenizer_of(real):
    hf = llama_tokenizer("legacy")
    return Tokenizer.load(REAL) if real else Tokenizer(hf, hf.convert_tokens_to_ids("<image>"))


@cache
def template(name, real):
    """LLaVA's, or the one behind "@" in a name: RLAIF-V's system line has another word."""
    return Template(name.partition("@")[2] or "vicuna_v1", tokenizer_of(real))


def questions(name, folder):
    return {q.id: q for q in stored(name, folder)[1]}


def messages(question):
    parts = [{"type": "image"} for _ in question.images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question.turns[0]}]}]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_text_is_the_official_loaders(name, tmp_path):
    found = questions(name, tmp_path)
    assert len(EXPECTED[name]) == 3
    for key, official in EXPECTED[name].items():
        assert template(name, False).opening(messages(found[key])) == official["text"]


def test_the_text_of_both_turns_is_fastchats(tmp_path):
    """MT-Bench's second turn stands behind the model's own answer to the first."""
    given = golden("prompts/fastchat.json")
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given["questions"]))
    references = [{"question_id": row["question_id"], "choices": [{"turns": ["a", "b"]}]} for row in given["questions"]]
    (tmp_path / "reference_gpt-4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in references))
    found = asked(benches()["mt-bench"], tmp_path)
    assert len(found) == 3
    for question in found:
        told: list = []
        for turn, text in enumerate(question.turns):
            told.append({"role": "user", "content": [{"type": "text", "text": text}]})
            assert template("vicuna_v1", False).opening(told) == given["turns"][question.id][turn]
            told.append({"role": "assistant", "content": [{"type": "text", "text": f"Said {turn}."}]})


@pytest.mark.skipif(REAL is None, reason="needs LLaVA-1.5's own tokenizer")
@pytest.mark.parametrize("name", EXPECTED)
def test_the_ids_are_the_official_loaders(name, tmp_path):
    found, tokenizer = questions(name, tmp_path), template(name, True).tokenizer
    for key, official in EXPECTED[name].items():
        ids = tokenizer.encode(template(name, True).opening(messages(found[key]))).ids
        assert (ids if ids[:1] == tokenizer.bos_ids else [*tokenizer.bos_ids, *ids]) == official["ids"]


@pytest.mark.parametrize("name", PIXELS)
def test_the_pixels_are_those_of_process_images(name, tmp_path):
    """LLaVA pads with the mean colour to a square, then resizes: every 24th pixel, and mean and spread of all."""
    config = {"model_type": "llava", "image_token_index": 5, "vision_config": {"image_size": 336, "patch_size": 14}}
    clip = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(clip))
    processor = ImageProcessor.from_model_dir(tmp_path, "pad")
    official = PIXELS[name]
    pixels = np.asarray(processor.load(base64.b64decode(official["png"]))["pixel_values"], np.float32)
    pixels = pixels.reshape(official["shape"])
    assert np.abs(pixels[:, ::24, ::24].reshape(3, -1) - np.array(official["every 24th"])).max() < 1e-5
    told = pixels.astype(np.float64)
    assert told.mean() == pytest.approx(official["mean"], abs=1e-6) and told.std() == pytest.approx(
        official["std"], abs=1e-6
    )
