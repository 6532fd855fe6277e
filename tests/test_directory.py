"""Models by hub id: a small server of the hub's protocol stands in for the hub, and the machine's cache is empty."""

import os
import subprocess
import sys

import pytest

from mmfast.config import dump
from mmfast.directory import directory
from mmfast.job.rows import read
from tests.make.hub_server import COMMIT, NAME, hub
from tests.make.rank_processes import free_port
from tests.make.tiny_run import make_config, make_model, write_pairs


def launch(tmp_path, *arguments, ranks=1, **environment):
    """Run Python with these arguments, as so many ranks; returns what all printed."""
    port = str(free_port())
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    given = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", **environment}
    if ranks > 1:
        given |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=clean | given | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        told = [process.communicate(timeout=500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(told)
    return "\n".join(told)


def weights_asked(asked):
    return [line for line in asked if line.startswith("GET") and line.endswith("model.safetensors")]


def test_two_ranks_train_from_a_hub_id_with_an_empty_cache_and_again_without_the_network(tmp_path):
    data, file = write_pairs(tmp_path, 6), tmp_path / "config.toml"
    with hub(make_model(tmp_path)) as (environment, asked):
        config = make_config(tmp_path, NAME, data, **{"train.steps": 1, "export.formats": ["hf"]})
        file.write_text(dump(config))
        launch(tmp_path, "-m", "mmfast.train", file, ranks=2, **environment)
        assert len(weights_asked(asked)) == 1, asked
        assert len([line for line in asked if "/api/models" in line]) == 2, asked  # which commit, which files: once
    file.write_text(dump(config.model_copy(update={"output_dir": str(tmp_path / "again")})))
    launch(tmp_path, "-m", "mmfast.train", file, ranks=2, **environment | {"HF_HUB_OFFLINE": "1"})
    first, again = (read(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("run", "again"))
    assert first == again
    assert (tmp_path / "run" / "export" / "hf" / "model.safetensors").exists()


SCRIPT = """
import sys
from mmfast.directory import directory
for name in sys.argv[1:]:
    try:
        print(sorted(p.name for p in directory(name).iterdir() if p.suffix == ".safetensors"))
        folder = directory(name, weights=True)
        print(folder.name, sorted(p.name for p in folder.iterdir() if p.suffix == ".safetensors"))
    except ValueError as error:
        print(error)
"""


def test_weights_come_only_where_they_are_asked_for_and_what_is_not_there_is_said_in_a_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with hub(make_model(tmp_path)) as (environment, asked):
        told = launch(tmp_path, script, NAME, "someone/else", **environment).splitlines()
        assert len(weights_asked(asked)) == 1, asked
    assert "[]" in told and f"{COMMIT} ['model.safetensors']" in told, told
    assert any(line.startswith('"someone/else" is no folder here, and the hub has no such model') for line in told)
    told = launch(tmp_path, script, NAME, "nosuchdir", **environment).splitlines()  # the server is down
    assert f"{COMMIT} ['model.safetensors']" in told, told
    assert '"nosuchdir" is no folder here, and as a hub id it could not be reached' in told


def test_a_path_that_is_no_folder_and_no_hub_id():
    with pytest.raises(ValueError, match='"runs/demo/base/export" is no folder here, and no hub id either'):
        directory("runs/demo/base/export")


def test_a_folder_without_all_its_weights_is_named(tmp_path):
    path = make_model(tmp_path)
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert directory(path, weights=True) == path  # one whole file goes before an index
    (path / "model.safetensors").unlink()
    assert directory(path) == path
    with pytest.raises(ValueError, match="is not whole: model-00001-of-00002"):
        directory(path, weights=True)
