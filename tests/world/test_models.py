"""The factory's models are real model directories: transformers loads them, and they read picture and text."""

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from mmfast.families import config_of
from mmfast.world import grammar, models, scenes

MESSAGE = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]},
    {"role": "assistant", "content": [{"type": "text", "text": "The image shows a red circle."}]},
]


def inputs(family, path):
    """Token ids with the image token repeated as often as the image has features, and the image's tensors."""
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    config = config_of(path)
    picture = scenes.render(next(scenes.scenes(0, "train", 1)))
    text = tokenizer.apply_chat_template(MESSAGE, tokenize=False)
    if family in ("llava", "llava_next", "gemma3"):
        return hf.AutoProcessor.from_pretrained(path)(text=text, images=[picture], return_tensors="pt")
    batch = dict(hf.AutoImageProcessor.from_pretrained(path)(images=[picture], return_tensors="pt"))
    own = {"beit3_llava": "num_query", "qwen": "n_queries"}  # of families that have no grid
    fixed = {"qwen": getattr(config, "visual", None)}.get(family) or config.to_dict()
    slots = fixed[own[family]] if family in own else int(batch["image_grid_thw"].prod()) // 4
    image = tokenizer.convert_ids_to_tokens(config.image_token_id)
    ids = tokenizer(text.replace(image, image * slots), add_special_tokens=False, return_tensors="pt").input_ids
    types = {} if family in own else {"mm_token_type_ids": (ids == config.image_token_id).int()}
    return batch | types | {"input_ids": ids}


@pytest.mark.parametrize("family", [f for f in models.FAMILIES if f != "llama"])
def test_a_tiny_vlm_loads_and_reads_both_picture_and_text(family, tmp_path):
    path = models.tiny_model(family, tmp_path, seed=3)
    model = hf.AutoModelForImageTextToText.from_pretrained(path).eval()
    batch = inputs(family, path)
    with torch.no_grad():
        logits = model(**batch).logits
        other = model(**batch | {"pixel_values": -batch["pixel_values"]}).logits
    assert logits.shape[1] == batch["input_ids"].shape[1] and logits.isfinite().all()
    assert (logits[0, -1] - other[0, -1]).abs().max() > 1e-3, "the last token does not depend on the picture"
    assert sum(p.numel() for p in model.parameters()) < 500_000


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_weights_have_the_hubs_names(family, tmp_path):
    """vLLM finds no vision_tower.embeddings: checkpoints of the hub say vision_tower.vision_model.embeddings."""
    path = models.tiny_model(family, tmp_path / family)
    tower = [name for name in load_file(path / "model.safetensors") if "vision_tower" in name]
    assert tower and all("vision_tower.vision_model." in name for name in tower)
    _, report = hf.AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_text_only_model_loads(tmp_path):
    path = models.tiny_model("llama", tmp_path)
    model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(path), hf.AutoTokenizer.from_pretrained(path)
    text = [{"role": "user", "content": "What do you see?"}]
    ids = tokenizer(tokenizer.apply_chat_template(text, tokenize=False), return_tensors="pt").input_ids
    assert model(ids).logits.shape[-1] == 512


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    a, b, c = (models.build("llava", seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_dials_and_wrong_dials():
    model, *_ = models.build("llava", size="bench", layers=1, vocab=800, dtype="bfloat16")
    assert model.config.text_config.hidden_size == 512 and model.config.image_seq_length == 576
    assert model.dtype == torch.bfloat16 and model.config.text_config.vocab_size == 800
    with pytest.raises(ValueError, match="vocab = 200"):
        models.build("llava", vocab=200)
    with pytest.raises(ValueError, match="qwen9"):
        models.build("qwen9")


def test_every_word_of_the_world_is_one_token_and_other_text_survives():
    tokenizer = models.tiny_tokenizer("llava")
    for line in grammar.corpus(5, 50):
        assert len(tokenizer.tokenize(line)) <= len(line.split()) + sum(line.count(mark) for mark in ".,?")
        assert tokenizer.decode(tokenizer(line).input_ids, skip_special_tokens=True) == line
    assert tokenizer.decode(tokenizer("Zürich, 東京!", add_special_tokens=False).input_ids) == "Zürich, 東京!"
