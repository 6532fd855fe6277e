"""CHAIR by hand, and greedy captions equal to those of transformers' generate."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmfast.evals.world import RATES, change, changes, greedy_captions, of_counted, score
from mmfast.world import models, scenes
from mmfast.world.grammar import CAPTION_PROMPTS
from mmfast.world.scenes import Scene, Thing, render

SCENE = Scene("a", "light", (Thing("red", "circle", "small", (0,)), Thing("blue", "star", "large", (1, 5))))
OTHER = Scene("b", "dark", (Thing("green", "cross", "small", (4,), None),))


def test_chair_by_hand():
    captions = [
        "The image shows one red circle right of the centre saying GO, one large blue star and one green square.",
        "The image shows one green cross.",
    ]
    result = score(captions, [SCENE, OTHER])
    assert result.chair_i == pytest.approx(1 / 4)  # circle, star, square | cross: one of four is invented
    assert result.chair_s == pytest.approx(1 / 2)
    assert result.recall == pytest.approx(3 / 3)
    assert result.words == pytest.approx((20 + 6) / 2)
    wrong = {"object": (1, 4), "count": (1, 3), "relation": (1, 1), "colour": (0, 3), "word": (1, 1)}
    assert result.claims == wrong


def test_an_object_counts_once_a_caption_and_silence_recalls_nothing():
    twice = score(["a red circle and a red circle", ""], [SCENE, OTHER])
    assert (twice.chair_i, twice.chair_s, twice.recall) == (0.0, 0.0, pytest.approx(1 / 3))
    assert score(["a green star"], [OTHER]).chair_i == 1.0


def test_intervals_hold_the_truth_nineteen_times_of_twenty():
    """Of CHAIR_s, against captions that invent with probability .3; and a model does not differ from itself."""
    import random

    held = 0
    for trial in range(100):
        rng = random.Random(trial)
        texts = ["a red star" if rng.random() < 0.3 else "a green cross" for _ in range(150)]
        result = score(texts, [OTHER] * 150)
        low, high = result.intervals["chair_s"]
        assert low < result.chair_s < high and 0.1 < high - low < 0.2
        held += low <= 0.3 <= high
    assert held >= 88
    assert change(result, result) == (0.0, 0.0, 0.0)
    better, low, high = change(result, score(["a green cross"] * 150, [OTHER] * 150))
    assert better == -result.chair_s and low < better < high < 0


def test_every_rate_is_compared_picture_by_picture():
    """How often a kind of claim is wrong too; and counts that come from a file say the same."""
    said = ["a red circle left of the centre saying GO", "a red circle right of the centre saying GO"]
    one = Scene("c", "light", (Thing("red", "circle", "large", (3,), "GO"),))
    before, after = score([said[0], said[1]] * 20, [one] * 40), score([said[0]] * 40, [one] * 40)
    found = changes(before, after)
    assert found.keys() == RATES.keys() and found["relation"][0] == -0.5 and found["relation"][2] < 0
    assert found["chair_s"] == change(before, after) == found["word"] == (0.0, 0.0, 0.0)
    again = of_counted(before.counted)
    assert again == before and changes(again, after) == found


def test_captions_and_scenes_must_match():
    with pytest.raises(ValueError, match="2 captions for 1 scenes"):
        score(["a", "b"], [SCENE])


def test_greedy_captions_are_what_transformers_generates(tmp_path):
    model, processor = _opened(models.tiny_model("llava", tmp_path, seed=2, image_size=56, patch=28))
    pictures = list(scenes.scenes(1, "test", 5))
    texts = greedy_captions(tmp_path, pictures, max_tokens=8)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPTS[0]}]}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for scene, caption in zip(pictures, texts, strict=True):
        inputs = processor(text=text, images=render(scene), return_tensors="pt", add_special_tokens=False)
        out = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert caption == processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert len(set(texts)) > 1


def _opened(path):
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32), AutoProcessor.from_pretrained(path)
