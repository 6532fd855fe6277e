"""bench.logprob_host: what it times beside ours is the same function; its rows; nothing is left behind."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import logprob_host
from bench.device import Setup
from mmfast.ops.head import backends
from tests.ops.test_logprob_launches import LAUNCHES

CPU = torch.device("cpu")
MODES = {f"{logprob_host.MODE}, {head} head" for head in ("frozen", "trained")}


def test_rows_of_a_dry_run_and_the_folds_are_as_before():
    before = dict(backends.FOLDS)
    rows = list(logprob_host.device_rows(Setup(CPU, 2, dry=True, deadline=time.monotonic() + 60)))
    assert {row["mode"] for row in rows} == MODES and [row["peer"] for row in rows] == ["mmfast"] * 2
    one_tile = [LAUNCHES[256, trained] for trained in (False, True)]
    assert [row["launches"] for row in rows] == one_tile and all(row["median_s"] > 0 for row in rows)
    assert before == backends.FOLDS


def test_a_row_of_a_gpu_says_what_was_seen_there(monkeypatch):
    """With stand-ins for what needs one."""
    monkeypatch.setattr(logprob_host, "device_seconds", lambda run: 0.5)
    monkeypatch.setattr(logprob_host, "same_when_replayed", lambda run: len(run()) == 3)  # log-probs, two gradients
    monkeypatch.setattr(logprob_host, "launched", lambda run: Counter(fold=2, gemm=len(run())))
    setup = Setup(CPU, 2, dry=False, deadline=0)
    found = logprob_host.on_device(setup, (16, 8, 300), trained=True)
    ours, theirs = found.pop("mmfast"), found["eager"]
    assert len(ours[0]) == len(theirs[0]) == 2
    assert ours[1] == {"device_s": 0.5, "launches": 5, "replayed_to_the_same_bits": True}
    assert theirs[1] == {"device_s": 0.5, "launches": 4}  # nobody else's call is captured


def test_rows_that_would_come_too_late_are_left_out(capsys):
    assert list(logprob_host.device_rows(Setup(CPU, 2, dry=True, deadline=0))) == []
    assert "was left out" in capsys.readouterr().out


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("peer", logprob_host.PEERS)
def test_every_peer_computes_ours(peer, trained):
    if peer in ("trl", "liger"):
        pytest.importorskip({"trl": "trl.kernels", "liger": "liger_kernel.ops"}[peer])
    given, upstream = logprob_host.problem((16, 32, 300), trained, CPU), torch.randn(16)
    ours = logprob_host.step(given, upstream, None)()[1:]
    theirs = logprob_host.peer_step(logprob_host.PEERS[peer], given, upstream)()
    assert len(theirs) == len(ours) == 1 + trained
    for own, other in zip(ours, theirs, strict=True):  # bf16, which they round in other places
        assert (own - other).norm() < 0.02 * own.norm()


def test_times_end_when_a_call_returns(monkeypatch):
    """In turn, the first calls not counted."""
    called = []

    def named(name, seconds):
        return lambda: (called.append(name), time.sleep(seconds))

    monkeypatch.setattr(logprob_host, "WARM", 1)
    times = logprob_host.host_seconds({"a": named("a", 0.002), "b": named("b", 0)}, 3)
    assert called == ["a", "b"] * 4 and [len(t) for t in times.values()] == [3, 3] and min(times["a"]) > 0.002


@pytest.mark.skipif(torch.cuda.is_available(), reason="rows of a GPU go elsewhere")
def test_write(tmp_path: Path, monkeypatch):
    """The command and the machine stand in the rows, which replace those of before."""
    monkeypatch.setattr(logprob_host, "__file__", str(tmp_path / "logprob_host.py"))
    monkeypatch.setattr(sys, "argv", ["bench.logprob_host", "--shape", "16,4,500", "--repeats", "1", "--write"])
    threads = torch.get_num_threads()
    for _ in range(2):
        logprob_host.main()
    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (tmp_path / "results/ops-cpu.jsonl").read_text().splitlines()]
    assert {row["mode"] for row in rows} == MODES and len(rows) == 2
    assert all({"device", "torch", "date", "command", "launches"} <= row.keys() for row in rows)
    assert {tuple(row["shape"]) for row in rows} == {(16, 4, 500)} and "--write" in rows[0]["command"]
