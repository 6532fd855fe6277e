"""bench.feedback_experts on tiny models: all sides run and give rows, and the sides of a case find the same."""

from __future__ import annotations

import pytest

from bench.feedback_experts import CASES, measured


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_side_gives_a_row(name, monkeypatch):
    monkeypatch.setattr("bench.timing.gc.collect", lambda: 0)
    found = list(measured(name, quick=True, repeats=1))
    assert len(found) == 4 and all(row["best_s"] > 0 and row["times_row"] > 0 for row in found)


@pytest.mark.slow
def test_the_detectors_find_the_same():
    peers, *_ = CASES["detect"][0](True)
    ours = {name: run() for name, (run, _) in peers.items() if name.startswith("mmfast")}
    (one, other) = ours.values()
    assert one.boxes == other.boxes and sum(map(len, one.boxes.values())) > 10
