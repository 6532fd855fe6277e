"""bench.gpu: says so where there is no device, and its parts run (on a CPU with tiny shapes)."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu, preference, selective, splice
from bench.device import Setup, roof

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_exits_with_2() -> None:
    run = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "no CUDA device" in run.stdout


def test_the_small_parts_run_dry() -> None:
    cpu = torch.device("cpu")
    setup = Setup(cpu, repeats=2, dry=True, deadline=time.monotonic() + 600)
    rows = [
        row for part in (roof, splice.device_rows, preference.device_rows, selective.device_rows) for row in part(setup)
    ]
    assert all(row["median_s"] > 0 and row["repeats"] == 2 for row in rows)
    assert {"roof", "splice_embeddings", "preference_loss", "selective_logprob"} == {row["op"] for row in rows}
    assert any("fraction_of_roof" in row for row in rows if row["op"] == "splice_embeddings")


def test_a_failed_test_is_an_outcome(tmp_path: Path) -> None:
    """The row of a run of pytest: passed, failed, and cut short."""
    (tmp_path / "test_it.py").write_text("def test_right(): pass\ndef test_wrong(): assert 1 == 2\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_it.py")]
    assert gpu.tested("tests", [*command, "-k", "right"], 60)["outcome"] == "ok"
    assert "assert 1 == 2" in gpu.tested("tests", command, 60)["outcome"]
    assert gpu.tested("tests", command, 0.01)["outcome"] == "not finished in 0 s"


def test_wrong_results_end_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--dry"])
    monkeypatch.setattr(gpu, "tested", lambda mode, *_: {"op": "all", "mode": mode, "outcome": "exit 1: wrong"})
    assert gpu.main() == 1
    assert "nothing is timed" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_the_whole_dry_run() -> None:
    run = subprocess.run([sys.executable, "-m", "bench.gpu", "--dry"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and '"linear DPO"' in run.stdout, run.stdout[-2000:]
