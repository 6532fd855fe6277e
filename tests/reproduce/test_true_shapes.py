"""LLaVA-1.5-7B in its true sizes, in both layouts and without weights: `mmfast plan`, and a load on the meta device."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.models import load
from mmfast.training.recipes import recipe_file
from tests.make import stand_ins
from tests.make.tiny_run import write_pairs

WHOLE = 7_063_427_072  # parameters, as the hub counts them, with 32,064 rows of words
DECODER = 6_738_415_616  # of Vicuna's 32,000
PROJECTOR = (1024 + 1) * 4096 + (4096 + 1) * 4096


def true_sizes(folder, layout):
    """The released config.json: in the hub's, what is not said of the decoder is transformers' default."""
    made = (stand_ins.llava_hf if layout == "hf" else stand_ins.llava_native)(folder)
    config = json.loads((made / "config.json").read_text())
    if layout == "hf":
        kept = ("architectures", "max_position_embeddings", "model_type", "rms_norm_eps")
        text = {key: config["text_config"][key] for key in kept} | {"vocab_size": 32064}
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
        config |= {"text_config": text, "vision_config": config["vision_config"] | sizes | {"projection_dim": 768}}
    else:
        config |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
        config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "mm_hidden_size": 1024}
        (made.parent / "clip-vit-large-patch14-336" / "config.json").unlink()  # known without it
    for file in [*made.glob("*.safetensors"), *made.glob("*.bin"), *made.glob("*.index.json")]:
        file.unlink()
    stand_ins.put(made, config=config)
    return made


@pytest.fixture(params=["hf", "native"])
def seven_b(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = {"hf": "llava-1.5-7b-hf", "native": "llava-v1.5-7b"}[request.param]
    return true_sizes(tmp_path / "models" / name, request.param), request.param


def test_it_has_the_released_sizes(seven_b):
    folder, layout = seven_b
    scorer = load(str(folder), dtype="bfloat16", device="meta", random_weights=True)
    counts = {name: p.numel() for name, p in scorer.model.named_parameters()}
    beside = sum(count for name, count in counts.items() if "vision_tower" in name or "projector" in name)
    assert sum(counts.values()) - beside == DECODER + (2 * 64 * 4096 if layout == "hf" else 0)
    if layout == "hf":
        assert sum(counts.values()) == WHOLE
    assert scorer.adapter.rows_of({"pixel_values": [None]}) == [576]


@pytest.mark.parametrize("recipe", ["dgpref_llava", "rlaifv_full"])
def test_plan_says_what_it_takes(recipe, seven_b, tmp_path):
    folder, layout = seven_b
    overrides = [f"model.path={folder}", f"data.path={write_pairs(tmp_path, 16)}", f"data.cache={tmp_path / 'cache'}"]
    overrides += ["data.format=auto", "data.images=", "data.workers=0", "optim.warmup=0"]
    said = CliRunner().invoke(app, ["plan", str(recipe_file(recipe)), *overrides, "--ranks", "8", "--json"])
    assert said.exit_code == 0, (said.output, said.exception)
    told, _ = json.JSONDecoder().raw_decode(said.output[said.output.index("{") :])
    memory = told["memory"]
    assert told["examples"] == 16 and told["tokens"] < told["tokens_one_by_one"]
    assert told["tokens_one_by_one"] > 32 * 576  # two branches a pair, an image in each
    # Of one rank in eight: two moments of four bytes of what trains: all but the tower, or the LoRA of q and v
    decoder = DECODER + (2 * 64 * 4096 if layout == "hf" else 0)
    trained = decoder + PROJECTOR if recipe == "rlaifv_full" else 32 * 2 * 2 * 32 * 4096
    assert memory["optimiser"] == 8 * trained // 8 and memory["weights"] > 2 * decoder // 8
    assert memory["total"] < 20 * 2**30  # of an H100's 80
