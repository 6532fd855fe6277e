"""One file a family: a model that mmfast does not know is trained after one file says everything about it."""

import copy
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmfast import families
from mmfast.data.images.processor import ImageProcessor
from mmfast.families import adapter_for, family_of
from mmfast.job.rows import read
from mmfast.models import Scorer
from mmfast.train import train
from mmfast.training.recipes import memory_estimate, published
from mmfast.world.models import SIZES, build, save, tiny_image_processor, tiny_processor, tiny_tokenizer
from tests.make.model_cases import everything
from tests.make.tiny_run import make_config, write_pairs
from tests.models.test_exact import compare

# ViP-LLaVA: several layers of the tower side by side, normalised before they are projected
FILE = """
from mmfast.families.llava import Llava


class VipLlava(Llava):
    published = {"someone/vip": {"text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
                                 "vision_feature_layers": [-1, -2, 1]}}

    def patches(self):
        return (self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2

    def tower(self, model, images):
        import torch

        states = model.model.vision_tower(images["pixel_values"], output_hidden_states=True).hidden_states
        return torch.cat([states[i][:, 1:] for i in self.config.vision_feature_layer], dim=-1)
"""


SHORTEST = """
from mmfast.families.generic import Generic


class VipLlava(Generic):
    image_aspect = "crop"
"""


@pytest.fixture
def vipllava(tmp_path, monkeypatch):
    """The file in a package of its own, on the path."""
    (tmp_path / "plugin" / "mmfast_families").mkdir(parents=True)
    (tmp_path / "plugin" / "mmfast_families" / "vipllava.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    return tmp_path / "plugin"


@pytest.fixture(autouse=True)
def nothing_remembered():
    """No module of a folder that is gone from the path stays behind: a namespace package keeps its folders."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mmfast_families"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    family_of.cache_clear()
    published.cache_clear()


def tiny_vipllava() -> tuple:
    size, tokenizer = SIZES["tiny"], tiny_tokenizer("llava")
    config = hf.VipLlavaConfig(
        vision_config=build("llava")[0].config.vision_config,
        text_config=build("llava")[0].config.text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-1, -2, 1],
    )
    torch.manual_seed(0)
    return hf.AutoModelForImageTextToText.from_config(config), tokenizer, tiny_image_processor("llava", size)


def test_a_family_is_one_file(vipllava, tmp_path):
    model, tokenizer, images = tiny_vipllava()
    save(tmp_path / "model", model, tokenizer, images, None)
    config = make_config(tmp_path, tmp_path / "model", write_pairs(tmp_path, 4), **{"train.steps": 1})
    train(config)
    (row,) = read(tmp_path / "run" / "metrics.jsonl")
    assert row["grad_norm"] > 0 and abs(row["loss"] - 0.6931) < 1e-3
    adapter = adapter_for(model.config)
    assert type(adapter).__name__ == "VipLlava" and type(pickle.loads(pickle.dumps(adapter))) is type(adapter)
    assert build("vipllava")[0].config.model_type == "vipllava", "its tiny models are LLaVA's"
    assert not adapter.proven, "no test of mmfast has run it: it proves itself at load"


def test_a_family_that_follows_the_conventions_says_its_image_aspect_alone(vipllava, tmp_path):
    (vipllava / "mmfast_families" / "vipllava.py").write_text(SHORTEST)
    save(tmp_path / "model", *tiny_vipllava(), None)
    config = make_config(tmp_path, tmp_path / "model", write_pairs(tmp_path, 4), **{"train.steps": 1})
    train(config)
    (row,) = read(tmp_path / "run" / "metrics.jsonl")
    assert row["grad_norm"] > 0 and row["sharing"] > 0.3, "proven at load, so prefixes are shared"


def test_a_family_of_ones_own_is_as_exact(vipllava):
    model = tiny_vipllava()[0]
    plain = copy.deepcopy(model)
    adapter = adapter_for(model.config)
    compare(everything("llava", adapter), Scorer(model, adapter), plain, losses=("averaged ddpo",))


def test_without_its_file_its_images_go_through_transformers_own_processor(tmp_path):
    model, tokenizer, images = tiny_vipllava()
    save(tmp_path / "model", model, tokenizer, images, tiny_processor("llava", tokenizer, images, SIZES["tiny"]))
    assert ImageProcessor.from_model_dir(tmp_path / "model").geometry(70, 50) == (36, None)
    train(make_config(tmp_path, tmp_path / "model", write_pairs(tmp_path, 4), **{"train.steps": 1}))
    (row,) = read(tmp_path / "run" / "metrics.jsonl")
    assert row["grad_norm"] > 0 and row["sharing"] > 0.3, "proven at load, so prefixes are shared"


def test_its_file_tells_the_estimate_and_is_listed(vipllava, tmp_path):
    published.cache_clear()
    assert {"vipllava", "llava", "gemma3", "qwen2_vl"} <= set(families.families())
    config = make_config(tmp_path, Path("someone/vip"), tmp_path / "none.jsonl")
    assert memory_estimate(config, 1).total > 0


def test_marks_around_an_image_come_from_the_family(tmp_path, monkeypatch):
    from mmfast.data.text.tokens import Tokenizer

    (tmp_path / "plugin" / "mmfast_families").mkdir(parents=True)
    source = (
        FILE
        + """
    @classmethod
    def image_text(cls, model, image, token):
        return image, token(model["before"]) + image
"""
    )
    (tmp_path / "plugin" / "mmfast_families" / "marked.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    tokenizer = tiny_tokenizer("llava")
    tokenizer.save_pretrained(tmp_path / "model")
    image = tokenizer.convert_tokens_to_ids("<image>")
    described = {"model_type": "marked", "image_token_index": image, "before": tokenizer.bos_token_id}
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    assert Tokenizer.load(tmp_path / "model").expanded == ("<image>", "<s><image>")
    (tmp_path / "model" / "config.json").write_text(json.dumps(described | {"before": 10**6}))
    with pytest.raises(ValueError, match="no token 1000000"):
        Tokenizer.load(tmp_path / "model")


def test_what_a_family_made_is_made_anew_after_its_file_has_changed(vipllava, tmp_path):
    from mmfast.data.build import _model_digest
    from mmfast.models.vision_cache import vision_key

    model, *others = tiny_vipllava()
    save(tmp_path / "model", model, *others, None)
    found = []
    for text in (FILE, FILE, FILE + "\n# changed\n", SHORTEST):
        (vipllava / "mmfast_families" / "vipllava.py").write_text(text)
        sys.modules.pop("mmfast_families.vipllava", None)
        family_of.cache_clear()
        importlib.invalidate_caches()
        scorer = Scorer(model, adapter_for(model.config))
        found.append((_model_digest(tmp_path / "model", tmp_path), vision_key(scorer, torch.float32, "")))
    assert found[0] == found[1]
    assert len({store for store, _ in found}) == len({cached for _, cached in found}) == 3


def test_a_file_with_a_fault_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "mmfast_families").mkdir()
    (tmp_path / "mmfast_families" / "broken.py").write_text("import no_such_package_at_all")
    (tmp_path / "mmfast_families" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        family_of("broken")
    with pytest.raises(ValueError, match=r"mmfast_families.empty must hold one class derived from Adapter, it holds 0"):
        family_of("empty")
    assert family_of("base") is None and family_of("") is None and family_of("../llava") is None


def test_what_the_data_reads_of_a_family_needs_no_torch():
    code = "import sys; from mmfast.families import base; print(*({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_store_of_a_family_is_what_it_was(tmp_path):
    """Digests of the images' processing are in the keys of stores: facts that moved must not change them."""
    model = {"model_type": "gemma3", "vision_config": {"image_size": 56, "patch_size": 14}, "mm_tokens_per_image": 4}
    save_as = {"gemma3": model, "llava": model | {"model_type": "llava"}}
    found = {}
    for name, config in save_as.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        square = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
        CLIPImageProcessorPil(**square).save_pretrained(folder)
        made = ImageProcessor.from_model_dir(folder)
        found[name] = (made.aspect, made.slots, made.patch, made.edge, made.resample)
    assert found == {"gemma3": ("square", 4, 0, 56, 3), "llava": ("crop", 16, 14, 56, 3)}
