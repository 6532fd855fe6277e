"""Killed with SIGKILL at any instant and started again, a run ends as if nothing had happened, to the bit."""

import random
import time

import pytest
import torch

from mmfast.train import train
from mmfast.training.checkpoint import complete
from tests.make.rank_processes import finish, launch, run_ranks
from tests.make.run_results import untimed, weights
from tests.make.tiny_run import make_config, write_pairs

WORLD = 2


def config_of(folder, tiny):
    changes = {
        "data.cache": str(folder / "cache"),
        "train.steps": 10,
        "train.checkpoint_every": 2,
        "train.keep_last": 2,
        "train.tokens_per_pack": 300,
        "log.every": 3,
        "model.lora": {"r": 4, "alpha": 8.0, "dropout": 0.1},
    }
    return make_config(folder, *tiny, **changes)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    data = tiny[0], write_pairs(folder, 24, text_only=4)
    begin = time.monotonic()
    run_ranks(WORLD, folder, train, config_of(folder, data))
    return folder, data, time.monotonic() - begin


def started_again(folder, undisturbed, instant):
    """Kill all ranks when `instant(seconds since start)` says so, then start again and compare."""
    reference, data, _ = undisturbed
    config = config_of(folder, data)
    processes = launch(WORLD, folder, train, config)
    begin = time.monotonic()
    while not instant(time.monotonic() - begin) and any(p.is_alive() for p in processes):
        time.sleep(0.002)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for told in folder.glob("errors.*"):
        told.unlink()  # of a rank that saw the other die first
    left = [path.name for path in complete(folder / "run" / "checkpoints")]
    finish(launch(WORLD, folder, train, config), folder)
    assert untimed(folder / "run") == untimed(reference / "run")
    expected = weights(reference)
    for name, value in weights(folder).items():
        assert torch.equal(value, expected[name]), (name, left)
    return left


def test_killed_in_the_reference_pass(undisturbed, tmp_path):
    manifests = tmp_path / "cache" / "reference"
    assert started_again(tmp_path, undisturbed, lambda _: any(manifests.glob("*/manifest.json"))) == []


def test_killed_while_a_checkpoint_is_written(undisturbed, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    started_again(tmp_path, undisturbed, lambda _: (folder / ".tmp-step-4").exists())


@pytest.mark.parametrize("trial", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 20))])
def test_killed_at_a_random_instant(undisturbed, tmp_path, trial):
    at = random.Random(trial).uniform(0.2, 0.95) * undisturbed[2]
    started_again(tmp_path, undisturbed, lambda seconds: seconds > at)
