"""The shipped recipes load, hold the published values, and train."""

import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from mmfast.config import dump, load
from mmfast.evals.benches import benches
from mmfast.job.opening import Job
from mmfast.job.runtime import Runtime
from mmfast.models.estimate import estimate, trace_decoder, trace_layers
from mmfast.train import train
from mmfast.training import recipes as listing
from mmfast.training.forecast import alone, setting_of, sketch
from mmfast.training.recipes import FOLDER, memory_estimate, names, recipes
from tests.make.format_samples import write_all
from tests.make.tiny_run import make_config, make_model

NAMES = names()


def test_all_load_and_are_listed(tmp_path):
    rows = recipes()
    assert [row["name"] for row in rows] == NAMES and len(NAMES) >= 15
    assert all(row["about"] for row in rows)
    estimated = {row["name"]: row["gib_per_gpu"] for row in rows if "gib_per_gpu" in row}
    assert all(8 < gib < 80 for gib in estimated.values()) and estimated["qlora_1gpu"] < 24
    config = load(FOLDER / "qwen2_5_vl_ddpo_8gpu.toml")
    assert memory_estimate(config, 8).total < memory_estimate(config, 1).total / 3
    for name in NAMES:
        config = load(FOLDER / f"{name}.toml")
        (tmp_path / "again.toml").write_text(dump(config))
        assert load(tmp_path / "again.toml") == config


@pytest.mark.parametrize("name", [name for name in NAMES if re.match("mllm_dpo|sima|dgpref|rlhfv|rlaifv|world", name)])
def test_a_papers_recipe_names_its_evaluation(name):
    named = re.findall(r"^# Judged by: mmfast eval EXPORT --bench (\S+)", (FOLDER / f"{name}.toml").read_text(), re.M)
    assert len(named) == 1 and set(named[0].split(",")) <= set(benches())


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_the_list_and_the_plan_tell_the_same_of_a_model(family, tmp_path, monkeypatch):
    model = make_model(tmp_path, family, layers=8)
    monkeypatch.setattr(listing, "published", lambda: {"someone/tiny": AutoConfig.from_pretrained(model)})
    told, planned = (
        make_config(tmp_path, path, tmp_path / "none", **{"model.dtype": "bfloat16", "train.tokens_per_pack": 2000})
        for path in (Path("someone/tiny"), model)
    )
    job = alone(planned)
    scorer = sketch(job)
    pack = listing.usual_pack(scorer.adapter, planned)
    assert 1900 < len(pack.tokens) <= 2000
    setting = setting_of(job, scorer, 4, 8, "cuda", 2)
    assert memory_estimate(told, 4) == estimate(scorer, pack, setting)
    assert trace_decoder(scorer, pack, setting) == trace_layers(scorer, pack, setting), "of 8 layers few are traced"


def test_published_values():
    c = load(FOLDER / "mllm_dpo.toml")
    assert (c.objective.beta, c.optim.lr, c.optim.projector_lr, c.train.pairs_per_step) == (0.1, 5e-5, 2e-5, 128)
    assert (c.model.lora.r, c.model.lora.alpha, c.objective.average) == (128, 256, False)
    assert load(FOLDER / "mllm_dpo_steerlm.toml").optim.lr == 4e-4
    assert load(FOLDER / "sima.toml").optim.lr == 1e-7
    c = load(FOLDER / "rlhfv_release.toml")
    assert (c.objective.gamma, c.objective.beta, c.train.steps, c.train.pairs_per_step) == (1.1, 0.1, 2160, 8)
    c = load(FOLDER / "rlhfv_paper.toml")
    assert (c.objective.gamma, c.objective.beta, c.objective.average, c.train.pairs_per_step) == (5.0, 0.5, True, 32)
    a, b = load(FOLDER / "dgpref_llava.toml"), load(FOLDER / "dgpref_qwen.toml")
    assert (a.optim.lr, b.optim.lr, a.model.lora.r, b.model.lora.r) == (5e-6, 7e-6, 32, 32)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    data = io.BytesIO()
    Image.new("RGB", (90, 70), (200, 30, 30)).save(data, "PNG")
    for name in ("a.png", "2350001.jpg", "2350002.jpg"):
        (folder / name).write_bytes(data.getvalue())
    return write_all(folder, data.getvalue())


def overrides(name, tiny, samples, folder):
    config = load(FOLDER / f"{name}.toml")
    wanted = "trl" if config.data.format == "auto" else config.data.format
    path = samples[{"sima": "sima-pairs"}.get(wanted, wanted)]
    model = make_model(folder, "qwen") if name == "dgpref_qwen" else tiny[0]  # its LoRA and template are its family's
    given = {
        "model.path": model, "model.dtype": "float32", "data.path": path, "data.images": path.parent,
        "data.workers": 0, "data.cache": folder / "cache", "output_dir": folder / "run", "log.progress": "false",
        "data.on_error": "drop", "model.max_pixels": 0, "data.eval_path": "", "train.eval_samples": 0,
    }  # fmt: skip
    if config.model.quantize:
        given["model.quantize"] = ""
    return load(FOLDER / f"{name}.toml", [f"{key}={value}" for key, value in given.items()])


@pytest.mark.parametrize("name", NAMES)
def test_reads_its_systems_files(name, tiny, samples, tmp_path):
    config = overrides(name, tiny, samples, tmp_path)
    runtime = Runtime(0, 1, 0, 1, torch.device("cpu"))
    store = Job(config, runtime).store
    assert len(store) and all(branch.spans for branch in (store[0].chosen,))


@pytest.mark.parametrize("name", ["rlhfv_paper", "mllm_dpo_rejection"])
def test_trains_two_steps(name, tiny, samples, tmp_path):
    config = overrides(name, tiny, samples, tmp_path)
    config.train.epochs, config.train.steps, config.train.pairs_per_step = None, 2, 1
    assert train(config)["grad_norm"] > 0
