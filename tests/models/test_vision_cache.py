"""Cached vision features: the same log-probs and gradients without a tower in memory."""

from __future__ import annotations

import pickle

import pytest
import torch

from mmfast.models import Parallel, adapter_for, load, parallelize
from mmfast.models.vision_cache import VisionCache, cache_vision, vision_key, write_vision_cache
from mmfast.packing import build_pack
from mmfast.world import models as world
from tests.make.model_cases import everything
from tests.models.test_exact import compare


@pytest.mark.parametrize("freeze", [("vision",), ("vision", "projector")], ids=["projector trains", "projector frozen"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_cached_features_train_the_same(family, freeze, tmp_path):
    path = str(world.tiny_model(family, tmp_path / "model"))
    whole = load(path, dtype="float32", freeze=freeze)
    case = everything(family, whole.adapter)
    cached = tmp_path / vision_key(whole, torch.float32, "pil")
    assert write_vision_cache(whole, cached, case.pictures, case.load_images, torch.float32, batch=2) == 3
    assert write_vision_cache(whole, cached, case.pictures, case.load_images, torch.float32) == 0

    scorer = load(path, dtype="float32", freeze=freeze, cached_vision=True)
    plain = load(path, dtype="float32", freeze=freeze).model
    plain.get_decoder().config._attn_implementation = "sdpa"
    assert count(scorer) < count(whole), "the tower was loaded"
    assert scorer.model.config.to_dict() == whole.model.config.to_dict(), "what is exported names the whole tower"
    parallelize(scorer, Parallel(), None, torch.float32)
    again = cache_vision(
        path, tmp_path, case.pictures, case.load_images, dtype=torch.float32, freeze=freeze, processing="pil"
    )
    assert again.files.keys() == set(case.pictures) and set(again.files.values()) == set(cached.iterdir())
    reads = pickle.loads(pickle.dumps(VisionCache(cached, adapter_for(scorer.model.config))))
    case.load_images, load_pixels = lambda names: reads(names), case.load_images
    compare(case, scorer, plain, losses=("sigmoid",))
    with pytest.raises(ValueError, match="not in the vision cache"):
        reads(["picture 9"])
    with pytest.raises(ValueError, match="tower is not loaded"):
        scorer(build_pack(case.examples, case.infos, scorer.adapter.layout(), load_images=load_pixels))


def count(scorer) -> int:
    return sum(p.numel() for p in scorer.parameters())


def test_the_key_follows_the_tower_and_a_frozen_projector_only(tmp_path):
    path = str(world.tiny_model("llava", tmp_path))

    def key(freeze=("vision",), change: str = "", processing: str = "pil", dtype=torch.float32) -> str:
        scorer = load(path, dtype="float32", freeze=freeze)
        for name, p in scorer.named_parameters():
            if change and change in name:
                p.data.mul_(1.5)
        return vision_key(scorer, dtype, processing)

    same = key()
    assert key(change="language_model") == key(change="multi_modal_projector") == same
    frozen = key(freeze=("vision", "projector"))
    others = [
        key(change="vision_tower"), key(processing="torch"), key(dtype=torch.bfloat16), frozen,
        key(freeze=("vision", "projector"), change="multi_modal_projector"),
    ]  # fmt: skip
    assert len({same, *others}) == 6
