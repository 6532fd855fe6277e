"""mmfast train --gpus N: torchrun in the command's own process, one error line at the end, 75 after a stop."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfast.cli.app import _several
from mmfast.rounds import launch

MODULE = """
import os, pathlib, sys, time
rank, kind, folder = int(os.environ["RANK"]), sys.argv[1], pathlib.Path(sys.argv[2])
(folder / f"rank-{rank}").write_text(os.environ["OMP_NUM_THREADS"])
if kind == "mistake":
    if rank == 0:
        print("error: data.path: it is wrong", file=sys.stderr)
    sys.exit(1)
if kind == "killed":
    os.kill(os.getpid(), 9)
if kind == "asked":
    import signal
    def stop(*_):
        time.sleep(0.3)
        (folder / "stopped").write_text("now")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    (folder / f"ready-{rank}").touch()
    time.sleep(60)
if kind == "stopped" and rank == 0:
    (folder / "stopped").write_text("now")
"""
COMMAND = "import sys; from pathlib import Path; from mmfast.rounds.launch import attached; "
COMMAND += "sys.exit(attached(2, ['worker', *sys.argv[1:]], Path(sys.argv[2])))"


@pytest.fixture
def begin(tmp_path):
    (tmp_path / "worker.py").write_text(MODULE)

    def run(kind: str) -> subprocess.Popen:
        path = f"{tmp_path}:{Path(__file__).parents[2]}"
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": str(tmp_path)}
        command = [sys.executable, "-c", COMMAND, kind, str(tmp_path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    return run


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [("well", 0, ""), ("mistake", 1, "error: data.path: it is wrong\n"), ("killed", 137, ""), ("stopped", 75, "")],
)
def test_the_exit_code_and_the_last_line_are_those_of_one_process(begin, tmp_path, kind, code, told):
    process = begin(kind)
    out, error = process.communicate(timeout=300)
    assert (process.returncode, out, error) == (code, "", told)
    assert {path.name for path in tmp_path.glob("rank-*")} <= {"rank-0", "rank-1"}
    assert (tmp_path / "rank-0").exists() or kind == "killed"  # rank 1 may be killed before rank 0 has begun


def test_an_old_stop_is_not_this_ones(begin, tmp_path):
    (tmp_path / "stopped").write_text("long ago")
    process = begin("well")
    process.communicate(timeout=300)
    assert process.returncode == 0


def test_a_signal_waits_for_the_checkpoint_and_ends_with_75(begin, tmp_path):
    process = begin("asked")
    began = time.monotonic()
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None and time.monotonic() - began < 200
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=300)
    assert (process.returncode, out, error) == (75, "", "")


def test_processes_are_not_started_twice_nor_more_than_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "attached", lambda *_: pytest.fail("it must not start"))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="leave one of them out"):
        _several(2, ["c.toml"], tmp_path)
    monkeypatch.delenv("RANK")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="--gpus 4: this machine has 2"):
        _several(4, ["c.toml"], tmp_path)
