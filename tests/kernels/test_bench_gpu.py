"""bench.gpu: says so where there is no device, and its parts run (on a CPU with tiny shapes)."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu_checks, preference, selective, splice
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
    parts = (gpu_checks.splice, gpu_checks.preference, gpu_checks.selective, gpu_checks.linear_preference)
    checks = [row for part in parts for row in part(cpu)]
    assert checks and all(row["outcome"] == "ok" for row in checks)


def test_a_wrong_result_is_an_outcome() -> None:
    wrong = gpu_checks.row("op", "mode", "float32", ["result 0 has error 1"])
    assert wrong["outcome"] != "ok" and gpu_checks.error(torch.tensor([torch.nan]), torch.ones(1)) == float("inf")


@pytest.mark.slow
def test_the_whole_dry_run() -> None:
    run = subprocess.run([sys.executable, "-m", "bench.gpu", "--dry"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and '"linear DPO"' in run.stdout, run.stdout[-2000:]


@pytest.mark.gpu
def test_every_backend_on_the_device() -> None:
    rows = list(gpu_checks.run(torch.device("cuda"), small=False))
    assert rows and all(row["outcome"] == "ok" for row in rows), [row for row in rows if row["outcome"] != "ok"]
