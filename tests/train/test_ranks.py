"""Several ranks: the same curve at any world size and arrangement, mixed data, resuming elsewhere."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmfast.job.rows import read
from mmfast.train import train
from tests.make.rank_processes import run_ranks
from tests.make.run_results import curve, untimed, weights
from tests.make.tiny_run import make_config, write_pairs

NAMES = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/rejected")


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    """8 of 24 pairs have no picture: some packs have none."""
    return tiny[0], write_pairs(tmp_path_factory.mktemp("mixed"), 24, text_only=8)


@pytest.fixture(scope="module")
def alone(mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(config_of(folder, mixed))
    return folder


def config_of(folder, mixed, **changes):
    given = {"train.steps": 6, "train.checkpoint_every": 3, "train.keep_last": 9, "data.cache": str(folder / "cache")}
    return make_config(folder, *mixed, **given | {"train.tokens_per_pack": 300} | changes)


def close(folder, other, *, first=0):
    a, b = curve(folder / "run", *NAMES, "step"), curve(other / "run", *NAMES, "step")
    assert len(a) == len(b) and len(a) > first
    for x, y in zip(a[first:], b[first:], strict=True):
        assert x == pytest.approx(y, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("shard", ["full", "none"])
def test_two_ranks_draw_the_same_curve(mixed, alone, tmp_path, shard):
    run_ranks(2, tmp_path, train, config_of(tmp_path, mixed, **{"parallel.shard": shard}))
    close(tmp_path, alone)
    for name, value in weights(alone).items():
        assert torch.allclose(weights(tmp_path)[name], value, atol=2e-5), name


def test_resume_on_another_world_size(mixed, alone, tmp_path):
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-6")
    config = config_of(tmp_path, mixed)
    run_ranks(2, tmp_path, train, config)
    close(tmp_path, alone)
    assert untimed(tmp_path / "run")[:3] == untimed(alone / "run")[:3]  # kept; the rest is of the resumed run
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_lora_with_a_trained_projector_on_mixed_data(mixed, tmp_path):
    """What hangs without the dummy row: ranks whose packs have no image."""
    curves = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        changes = {"model.lora": {"r": 4, "alpha": 8.0}, "train.pairs_per_step": 2, "train.steps": 12}
        run_ranks(world, folder, train, config_of(folder, mixed, **changes))
        curves.append(folder)
    close(*curves)


def test_evaluation_and_samples_on_two_ranks(mixed, tmp_path):
    held_out = write_pairs(tmp_path, 6, name="eval.jsonl", split="test")
    changes = {"data.eval_path": str(held_out), "train.eval_every": 1, "train.eval_samples": 2, "train.eval_tokens": 4}
    folders = [tmp_path / "1", tmp_path / "2"]
    for world, folder in enumerate(folders, 1):
        folder.mkdir()
        run_ranks(
            world, folder, train, config_of(folder, mixed, **changes, **{"train.steps": 2, "export.formats": ["hf"]})
        )
    a, b = (curve(f / "run", "eval/loss", "eval/rewards/margins", "eval/logps/chosen") for f in folders)
    assert len(a) == 2
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=1e-5, abs=1e-5)
    assert read(folders[0] / "run" / "samples.jsonl") == read(folders[1] / "run" / "samples.jsonl")
    close(*folders)
    models = [load_file(f / "run" / "export" / "hf" / "model.safetensors") for f in folders]
    for name, value in models[0].items():
        assert torch.allclose(value, models[1][name], atol=2e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("world", [4])
def test_four_ranks(mixed, alone, tmp_path, world):
    run_ranks(
        world, tmp_path, train, config_of(tmp_path, mixed, **{"parallel.shard": "hybrid", "parallel.shard_size": 2})
    )
    close(tmp_path, alone)


@pytest.mark.slow
def test_mixed_data_on_four_ranks_never_hangs(mixed, tmp_path):
    changes = {"train.steps": 200, "train.checkpoint_every": 0, "train.pairs_per_step": 5, "log.every": 50}
    run_ranks(4, tmp_path, train, config_of(tmp_path, mixed, **changes), timeout=500)
    assert read(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 200
