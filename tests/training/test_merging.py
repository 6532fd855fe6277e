"""`mmfast merge`: what peft says of an adapter, and what stands on the disk afterwards."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmfast.models import export as exporting
from mmfast.models import merge as merging
from mmfast.models.loading import load
from mmfast.models.merge import merge
from tests.make.tiny_run import make_model
from tests.training.test_export import pixels_logits

PATTERNS = {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 8, "o_proj": 2}, "alpha_pattern": {"down_proj": 40}}


def make_adapter(base, folder, size=0.3, **settings):
    """By peft itself, with every matrix drawn at random."""
    given = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*_proj", **settings}
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), LoraConfig(**given))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=size)
    model.save_pretrained(folder)
    return folder


def digests(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [{}, PATTERNS, {**PATTERNS, "use_rslora": True}, {"modules_to_save": ["multi_modal_projector"]}],
    ids=["plain", "patterns", "rslora", "projector"],
)
def test_a_merge_is_what_peft_computes(tmp_path, dtype, settings):
    base = make_model(tmp_path, dtype=dtype)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    worst = merge(adapter, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    expected = pixels_logits(PeftModel.from_pretrained(model, adapter))
    plain = pixels_logits(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32))
    found = pixels_logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32))
    assert (plain - expected).abs().max() > 1
    assert (found - expected).abs().max() < (1e-3 if dtype == "float32" else 0.5)
    assert worst < (1e-3 if dtype == "float32" else 2.0)  # by the draw; merge() holds it to peft's rounding
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {getattr(torch, dtype)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "llava", "out"]  # no temporary left


def test_the_target_is_a_folder_of_its_own(tmp_path, monkeypatch):
    base = make_model(tmp_path)
    adapter = make_adapter(base, tmp_path / "adapter")
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = digests(base), digests(adapter)
    for out in (base, "llava", "link", "adapter/../llava", base / "merged", adapter, "adapter/merged", ".", "full"):
        with pytest.raises(ValueError, match="name a new folder for the merged model"):
            merge(adapter, out)
    assert (digests(base), digests(adapter)) == before
    assert sorted(os.listdir()) == ["adapter", "full", "link", "llava"]


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True}, {"fan_in_fan_out": True}, {"bias": "all"}, {"lora_bias": True}, {"peft_type": "LOHA"},
        {"layer_replication": [[0, 2], [1, 2]]}, {"init_lora_weights": "pissa"}, {"of_a_later_peft": "yes"},
        {"target_parameters": ["experts.down_proj"]}, {"trainable_token_indices": [1]},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name(tmp_path, settings):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "nowhere"}
    (adapter / "adapter_config.json").write_text(json.dumps(plain | settings))
    with pytest.raises(ValueError, match=next(iter(settings))):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_merge_is_refused_and_leaves_nothing(tmp_path, monkeypatch, dtype):
    base = make_model(tmp_path, dtype=dtype)
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["multi_modal_projector"])
    right = merging.merged
    with monkeypatch.context() as patched:
        patched.setattr(merging, "merged", lambda base, a, b, scaling: right(base, a, b, 1.1 * scaling))
        with pytest.raises(ValueError, match=r"the merged language_model.*is not what peft merges.*nothing is written"):
            merge(adapter, tmp_path / "out")
    with monkeypatch.context() as patched:  # the projector alone
        patched.setattr(
            merging,
            "load_file",
            lambda path: {k: 1.1 * v if "projector" in k else v for k, v in load_file(path).items()},
        )
        with pytest.raises(ValueError, match=r"the merged multi_modal_projector.*is not what peft merges"):
            merge(adapter, tmp_path / "out")
    copy = exporting.copy_side_files

    def other_layer(source, out, *, config_too):
        copy(source, out, config_too=config_too)
        text = (out / "config.json").read_text()
        (out / "config.json").write_text(text.replace('"vision_feature_layer": -2', '"vision_feature_layer": -1'))

    with monkeypatch.context() as patched:  # right weights that load as another model: only a picture tells
        patched.setattr(exporting, "copy_side_files", other_layer)
        with pytest.raises(ValueError, match=r"off by .* nat a token from base"):
            merge(adapter, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "llava"]
    merge(adapter, tmp_path / "out")


def test_a_quantised_base_is_refused_for_the_model_that_it_was_made_of(tmp_path):
    base = make_model(tmp_path)
    adapter = make_adapter(base, tmp_path / "adapter")
    four_bits = tmp_path / "four-bits"
    shutil.copytree(base, four_bits)
    config = json.loads((base / "config.json").read_text())
    kind = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (four_bits / "config.json").write_text(json.dumps(config | {"quantization_config": kind}))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(four_bits)}))
    with pytest.raises(ValueError, match=f"^{four_bits} is quantised: name the model that it was made of by --base"):
        merge(adapter, tmp_path / "out")
    merge(adapter, tmp_path / "out", str(base))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_adapter_that_does_not_fit_is_told_apart(tmp_path):
    base = make_model(tmp_path)
    adapter = make_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != first}, file)
    with pytest.raises(ValueError, match=r"lora_B\.weight has no place"):
        merge(adapter, tmp_path / "out")
    save_file(tensors | {first: tensors[first][:2].contiguous()}, file)
    with pytest.raises(ValueError, match=r"has rank 2, and its adapter_config\.json says 4"):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"modules_to_save": ["multi_modal_projector"]}, "modules_to_save"),
        ({"use_dora": True}, "is DoRA"),
        ({"lora_bias": True}, "is no plain LoRA of a linear layer"),
        ({"target_modules": ["embed_tokens"]}, "is no plain LoRA of a linear layer"),
        ({"bias": "all"}, 'bias = "all"'),
    ],
)
def test_an_initial_adapter_that_would_be_exported_in_part_is_refused(tmp_path, settings, told):
    base = make_model(tmp_path)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    with pytest.raises(ValueError, match=f"^model.adapter: .*{told}"):
        load(str(base), dtype="float32", adapter=str(adapter))
