"""bench.ops: each suite runs at its smallest and gives rows; a peer that cannot run is named, one of ours never is."""

from __future__ import annotations

import argparse

import pytest

from bench.ops import SUITES


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_gives_rows_of_ours(suite, capsys, monkeypatch):
    monkeypatch.setattr("bench.timing.gc.collect", lambda: 0)  # before each run; long in a process of many tests
    options = argparse.Namespace(quick=True, repeats=1, dtype="float32", shape="", peers="mmfast")
    rows = list(SUITES[suite](options))
    assert {row["op"] for row in rows} == {suite} and "mmfast" in {row["peer"] for row in rows}
    assert all(row["best_s"] > 0 for row in rows)
    assert "does not run here" not in capsys.readouterr().out
