import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmfast.checkpoint import trainable
from mmfast.config import load
from mmfast.export import export
from mmfast.merging import merge
from mmfast.models.sharded import disk_names
from mmfast.runtime import start
from mmfast.train import Run
from tests.train.tiny import make_config, make_model

LORA = {"model.lora": {"r": 4, "alpha": 8.0}}


def run(folder, tiny, **changes):
    config = make_config(folder, *tiny, **{"train.steps": 3, "optim.lr": 1e-2} | changes)
    runtime = start(config)
    made = Run(config, runtime)
    made.loop()
    runtime.close()
    return made


def logits(model):
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def pixels_logits(model):
    """With an image, so that the projector counts."""
    config = model.config
    ids = torch.cat([torch.arange(5, 9), torch.full((36,), config.image_token_id), torch.arange(9, 30)])[None]
    image = torch.rand(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=image).logits


def test_hf_of_a_full_run_loads_equal(tiny, tmp_path):
    made = run(tmp_path, tiny, **{"export.formats": ["hf"]})
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "export" / "hf")
    ours = dict(made.scorer.model.named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p, ours[name]), name
    base = AutoModelForImageTextToText.from_pretrained(tiny[0])
    assert not torch.equal(logits(model), logits(base))
    card = (tmp_path / "run" / "export" / "hf" / "README.md").read_text()
    assert str(tiny[0]) in card and "rewards/margins" in card and made.store.digest in card
    assert (tmp_path / "run" / "export" / "hf" / "tokenizer.json").exists()


def test_lora_merged_peft_and_native_agree(tiny, tmp_path):
    made = run(tmp_path, tiny, **LORA, **{"export.formats": ["hf", "peft", "llava"], "export.merge": True})
    folder = tmp_path / "run" / "export"
    names = trainable(made.scorer)
    assert any("lora_B" in n for n in names) and any("projector" in n for n in names)
    whole = AutoModelForImageTextToText.from_pretrained(folder / "hf")
    with_adapter = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny[0]), folder / "peft")
    assert torch.allclose(pixels_logits(whole), pixels_logits(with_adapter), atol=2e-4)
    base = AutoModelForImageTextToText.from_pretrained(tiny[0])
    assert (pixels_logits(base) - pixels_logits(whole)).abs().max() > 1e-2
    native = folder / "llava-lora"
    adapter = load_file(native / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in adapter
    others = torch.load(native / "non_lora_trainables.bin", weights_only=True)
    assert set(others) == {f"base_model.model.model.mm_projector.{i}.{w}" for i in (0, 2) for w in ("weight", "bias")}
    assert json.loads((native / "config.json").read_text())["mm_projector_type"] == "mlp2x_gelu"

    assert merge(folder / "peft", tmp_path / "merged") < 1e-3
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert torch.allclose(pixels_logits(whole), pixels_logits(again), atol=1e-5)
    other = make_model(tmp_path / "other", layers=1)
    with pytest.raises(ValueError, match="is it the adapter's base"):
        merge(folder / "peft", tmp_path / "no", str(other))
    with pytest.raises(ValueError, match="not a peft adapter"):
        merge(tiny[0], tmp_path / "no")


def test_export_of_a_checkpoint(tiny, tmp_path):
    made = run(tmp_path, tiny)
    folder = export(tmp_path / "run", ("hf",))
    model = AutoModelForImageTextToText.from_pretrained(folder / "hf")
    ours = dict(made.scorer.model.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="complete checkpoint"):
        export(tmp_path / "run", ("hf",), step=7)
    assert load(tmp_path / "run" / "config.toml") == made.config


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llama"])
def test_every_stored_tensor_finds_its_parameter(family, tmp_path):
    names = disk_names(make_model(tmp_path, family))
    assert len(set(names.values())) == len(names)
