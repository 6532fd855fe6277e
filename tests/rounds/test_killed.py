"""A two-round run of a tiny model, the local engine answering and the world judging: killed in every step, it ends with
the weights of one that was left alone. And the same under torchrun, where every rank runs the rounds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfast.files import weight_digests
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model

FILE = """
output_dir = "{out}"
[rounds]
count = {count}
keep = "last"
stop = "never"
[prompts]
path = "{world}/pairs.jsonl"
limit = 6
[generate]
preset = "sima"
max-tokens = 12
[[feedback]]
stage = "critique"
engine = "world"
model = "{world}"
preset = "sima"
noise = 0.6
[[pairs]]
rule = "sima"
keep-cut = true
[model]
path = "{base}"
dtype = "float32"
[data]
workers = 0
[optim]
lr = 1e-2
[train]
steps = 2
pairs_per_step = 2
tokens_per_pack = 1024
checkpoint_every = 1
[parallel]
threads = 1
activation_checkpointing = false
"""
STEPS = ("answers", "critique", "pairs", "run")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    world = write_world(folder / "world", WorldSpec(base=1, pairs=12, groups=1, test=2))
    return {"world": world, "base": tiny_model("llava", folder / "base")}


def command(out: Path, given: dict, count: int) -> list[str]:
    file = out.with_suffix(".toml")
    file.write_text(FILE.format(out=out, count=count, **given))
    return ["-m", "mmfast.cli", "rounds", str(file)]


def run(arguments: list[str], **more) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True, **more)


def ended(process: subprocess.Popen) -> str:
    told = process.communicate(timeout=500)[1]
    assert process.returncode == 0, told
    return told


def weights(out: Path, count: int) -> dict[str, str]:
    return weight_digests(out / "rounds" / f"{count:02d}" / "run" / "export" / "hf")


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(text) for text in listed.read_text().split()] if listed.exists() else []


def begun(note: Path) -> bool:
    try:
        return json.loads(note.read_text())["mark"] == ""
    except (OSError, ValueError):
        return False


@pytest.mark.slow
def test_killed_in_every_step_it_ends_with_the_same_weights(given, tmp_path):
    ended(run(command(tmp_path / "alone", given, 2)))
    out, killed = tmp_path / "killed", 0
    for number in (1, 2):
        for place, step in enumerate(STEPS):
            process = run(command(out, given, 2))
            note = out / "rounds" / f"{number:02d}" / "steps" / f"{step}.json"
            while process.poll() is None and not begun(note):
                time.sleep(0.02)
            time.sleep(1.5 * place)  # other instants of a step: before it has begun its work, and within it
            below = children(process.pid)
            os.kill(process.pid, signal.SIGKILL)  # what it started dies with it
            process.communicate()
            killed += begun(note)
            deadline = time.monotonic() + 60
            while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
                time.sleep(0.05)
    assert killed >= 6, "most of the kills came within their step"
    ended(run(command(out, given, 2)))
    assert weights(out, 2) == weights(tmp_path / "alone", 2)


def launchers(nodes: int) -> list[list[str]]:
    """Two ranks: of one machine, or of two, each of which is told its own place and the first one's address."""
    torchrun = ["-m", "torch.distributed.run"]
    if nodes == 1:
        return [[*torchrun, "--standalone", "--nproc-per-node", "2"]]
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [[*torchrun, *meeting, "--node-rank", str(rank)] for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_ranks_run_the_rounds_together(nodes, given, tmp_path):
    out = tmp_path / "ranks"
    told = "".join([ended(p) for p in [run([*each, *command(out, given, 1)]) for each in launchers(nodes)]])
    assert told.count("round 1, run:") == 1, told  # rank 0 alone tells
    assert (out / "rounds" / "01" / "run" / "finished.json").exists()
    assert json.loads((out / "result.json").read_text())["rounds"] == 1
    rows = sorted((out / "rounds" / "01" / "answers").glob("rows-*.jsonl"))
    assert len(rows) == 2 and all(path.stat().st_size for path in rows)  # both ranks answered
