"""Runs whose data lies elsewhere at the next start, and ranks that open what rank 0 has found."""

import json
import os
import shutil

import pytest

from mmfast.data import binding
from mmfast.job import opening as job
from mmfast.job.opening import Job
from mmfast.job.runtime import start
from mmfast.train import train
from tests.make.rank_processes import run_ranks
from tests.make.run_results import curve
from tests.make.tiny_run import make_config, write_pairs

NAMES = ("loss", "grad_norm", "rewards/margins", "step")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "scratch-1").mkdir()
    return write_pairs(tmp_path / "scratch-1", 24)


def test_a_run_goes_on_when_its_data_has_moved(tiny, data, tmp_path, monkeypatch):
    changes = {"train.steps": 4, "train.checkpoint_every": 2, "train.keep_last": 9}
    train(make_config(tmp_path, tiny[0], data, **changes))
    whole = curve(tmp_path / "run", *NAMES)
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    shutil.move(data.parent, tmp_path / "scratch-2")

    def built(*_):
        raise AssertionError("examples were built again")

    monkeypatch.setattr("mmfast.data.build._build", built)
    train(make_config(tmp_path, tiny[0], tmp_path / "scratch-2" / data.name, **changes))
    assert curve(tmp_path / "run", *NAMES) == whole


def test_other_pictures_in_their_place_are_other_data(tiny, data, tmp_path):
    changes = {"train.steps": 4, "train.checkpoint_every": 2, "train.keep_last": 9}
    train(make_config(tmp_path, tiny[0], data, **changes))
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    shutil.move(data.parent, tmp_path / "scratch-2")
    pictures = sorted((tmp_path / "scratch-2").glob("*.png"))
    shutil.copy(pictures[0], pictures[1])
    with pytest.raises(ValueError, match=r"cannot resume.*data"):
        train(make_config(tmp_path, tiny[0], tmp_path / "scratch-2" / data.name, **changes))


def watched(config, folder, node_local=False, other=""):
    """Opens the examples; leaves what this rank did: the store, and how often it built and looked at files."""
    rank = os.environ["RANK"]
    done = {"build": 0, "looked": 0}

    def count(owner, name, what):
        real = getattr(owner, name)

        def counted(*given, **more):
            done[what] += 1
            return real(*given, **more)

        setattr(owner, name, counted)

    count(job, "build", "build")
    count(binding, "over", "looked")
    if node_local:  # the same path, but another disk
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        (folder / f"node-{rank}").mkdir(exist_ok=True)
        os.chdir(folder / f"node-{rank}")
        config = config.model_copy(deep=True)
        config.data.cache = "cache"
        if other and rank == "1":
            config.data.images = other
    runtime = start(config)
    try:
        store = Job(config, runtime).store
        length = len(store[0].chosen.ids) + len(store.open_image(store[0].chosen.images[0]))
        done |= {"path": str(store.path), "digest": store.digest, "length": length}
    except ValueError as error:
        done["error"] = str(error)
    finally:
        runtime.close()
    (folder / f"rank-{rank}.json").write_text(json.dumps(done))


def both(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_rank_0_alone_looks_at_files(tiny, data, tmp_path):
    config = make_config(tmp_path, tiny[0], data)
    for _ in range(2):  # built, then found
        run_ranks(2, tmp_path, watched, config, tmp_path)
        first, second = both(tmp_path)
        assert first["build"] == 1 and first["looked"] > 0 and second["build"] == second["looked"] == 0
        assert first["digest"] == second["digest"] and first["path"] == second["path"]
        assert first["length"] == second["length"]


def test_each_node_fills_a_cache_of_its_own(tiny, data, tmp_path):
    config = make_config(tmp_path, tiny[0], data)
    for _ in range(2):
        run_ranks(2, tmp_path, watched, config, tmp_path, True)
        first, second = both(tmp_path)
        assert first["build"] == second["build"] == 1 and first["digest"] == second["digest"]
    assert all(list(tmp_path.glob(f"node-{rank}/cache/examples/*/*/manifest.json")) for rank in (0, 1))


def test_a_node_with_other_pictures_is_refused_on_all_ranks(tiny, data, tmp_path):
    shutil.copytree(data.parent, tmp_path / "other")
    pictures = sorted((tmp_path / "other").glob("*.png"))
    shutil.copy(pictures[0], pictures[1])
    config = make_config(tmp_path, tiny[0], data, **{"data.images": str(data.parent)})
    run_ranks(2, tmp_path, watched, config, tmp_path, True, str(tmp_path / "other"))
    first, second = both(tmp_path)
    assert first["error"] == second["error"] and "images of a node are not those of rank 0" in first["error"]


def test_a_problem_of_rank_0_is_told_on_all(tiny, data, tmp_path):
    config = make_config(tmp_path, tiny[0], data, **{"data.cache": str(data / "below-a-file")})
    run_ranks(2, tmp_path, watched, config, tmp_path)
    first, second = both(tmp_path)
    assert first["error"] == second["error"] and "data.cache: " in first["error"] and "\n" not in first["error"]
