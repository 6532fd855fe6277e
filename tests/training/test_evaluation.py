"""Answers that an evaluation generates are what transformers generates from what the family's processor gives."""

from contextlib import contextmanager

import pytest
import torch
import transformers as hf
from PIL import Image

from mmfast.families import adapter_for
from mmfast.job.opening import Job
from mmfast.job.runtime import start
from mmfast.training.evaluation import Evaluation
from mmfast.training.objective import objective_of
from mmfast.world.models import FAMILIES
from tests.make.tiny_run import make_config, make_model, write_pairs


def processed(path, family, question, picture):
    """What the family's own processor makes of a question and a picture. Qwen's does not run without torchvision:
    there the image tokens are laid out by hand."""
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    content = [{"type": "image"}] * bool(picture) + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content if picture else question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if picture and family in ("llava", "llava_next", "gemma3"):
        processor = hf.AutoProcessor.from_pretrained(path, backend="pil")
        return dict(processor(text=text, images=[picture], add_special_tokens=False, return_tensors="pt"))
    images = {}
    if picture:
        images = dict(hf.AutoImageProcessor.from_pretrained(path, backend="pil")(images=[picture], return_tensors="pt"))
        own = {"beit3_llava": ("<im_patch>", 8), "qwen": ("<imgpad>", 16)}  # of families that have no grid
        pad, slots = own.get(family) or ("<|image_pad|>", int(images["image_grid_thw"].prod()) // 4)
        text = text.replace(pad, pad * slots)
    inputs = {**tokenizer(text, add_special_tokens=False, return_tensors="pt")}
    inputs.pop("token_type_ids", None)
    if picture and family not in own:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return inputs | images


@contextmanager
def evaluation(folder, path, data, **changes):
    changes = {"data.eval_path": str(data), "train.eval_samples": 4, "train.eval_tokens": 12, **changes}
    config = make_config(folder, path, data, **changes)
    runtime = start(config)
    job = Job(config, runtime)
    try:
        yield Evaluation(job, job.held_out, job.policy, objective_of(config), config.train)
    finally:
        runtime.close()


def sampled(folder, path, data, **changes):
    with evaluation(folder, path, data, **changes) as made:
        return made.samples()


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_what_transformers_generates(family, tmp_path):
    path = make_model(tmp_path, family)
    text_only = 6 if family == "llama" else 2
    data = write_pairs(tmp_path, 6, text_only=text_only)
    samples = sampled(tmp_path, path, data)

    kinds = hf.AutoModelForCausalLM if family == "llama" else hf.AutoModelForImageTextToText
    model = kinds.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    assert len(samples) == 4
    for number, sample in enumerate(samples):
        picture = Image.open(tmp_path / f"train-{number // 2}.png").convert("RGB") if number >= text_only else None
        assert len(sample["images"]) == bool(picture)
        inputs = processed(path, family, ("Describe the picture.", "What do you see here?")[number % 2], picture)
        out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert sample["answer"] == answer, (number, sample["answer"], answer)
    assert any(sample["answer"] for sample in samples)


def test_cached_towers_give_the_same_samples_and_a_picture_that_changed_is_named(tmp_path):
    path, data = make_model(tmp_path, "llava"), write_pairs(tmp_path, 6, text_only=2)
    cached = sampled(tmp_path, path, data, **{"model.cache_vision": True, "model.freeze": ["vision"]})
    assert cached == sampled(tmp_path, path, data) and any(sample["answer"] for sample in cached)
    with evaluation(tmp_path, path, data) as made:
        Image.new("RGB", (84, 84), "red").save(tmp_path / "train-1.png")
        with pytest.raises(ValueError, match="has changed since the examples were built"):
            made.samples()


def test_a_model_whose_prompt_is_read_in_both_directions_is_refused_by_name():
    with pytest.raises(ValueError, match="paligemma: its prompt is read in both directions"):
        adapter_for(hf.PaliGemmaConfig())
