"""bench.papers: finished seeds become rows, the docs' tables are made of rows, and the docs hold what the rows say."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from bench import papers
from mmfast.papers.reading import read
from tests.make.paper_seed import METHODS, write_seed

PAGE = Path(__file__).parents[2] / "docs" / "papers-world.md"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    out = tmp_path_factory.mktemp("seeds")
    return [write_seed(out, seed, pictures=10) for seed in (21, 22)]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the command on results of its own; returns what it printed."""
    monkeypatch.setattr(papers, "RESULTS", tmp_path / "results" / "papers.jsonl")

    def called(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["bench.papers", *map(str, words)])
        papers.main()
        return capsys.readouterr().out

    return called


def test_finished_seeds_are_written_once_and_tabled(seeds, call):
    assert "beyond its blind control" in call("--from", *seeds) and not papers.RESULTS.exists()
    for _ in range(2):  # a second time replaces the rows of the first
        call("--from", *seeds, "--write")
    rows = [json.loads(line) for line in papers.RESULTS.read_text().splitlines()]
    assert len(rows) == len({(row["shape"], row["peer"]) for row in rows}) == 2 * (2 * len(METHODS) - 1 + 1)
    assert all({"device", "torch", "date", "command", "world_commit", "seed"} <= row.keys() for row in rows)
    five = next(row for row in rows if row["peer"] == "rlhfv-average-5" and row["seed"] == 22)
    seed = read(seeds[1])
    assert five["device"] == "a CPU, 2 threads" and five["control"] == "rlhfv-average-5-blind"
    assert five["settings"]["gamma"] == 5 and five["pairs"] == 900 and five["seconds"] == 61.2
    assert five["chair_s"] == seed.scores["rlhfv-average-5"].chair_s
    assert five["beyond"]["relation"] == list(seed.beyond["rlhfv-average-5"]["relation"])
    assert five["change"]["recall"] == list(seed.changed["rlhfv-average-5"]["recall"])
    assert "counted" not in five and sum(len(json.dumps(row)) for row in rows) / len(rows) < 4000
    printed = call("--table")
    assert printed.strip() == papers.docs(rows).strip() and printed.count("\n| ") == 2 * len(METHODS) + 1


def test_what_cannot_be_tabled_is_refused(seeds, call, tmp_path):
    with pytest.raises(ValueError, match=r"is not there: `python -m bench.papers --write` makes it"):
        call("--table")
    half = tmp_path / "half"
    half.mkdir()
    told = json.loads((seeds[0] / "papers.json").read_text())
    (half / "papers.json").write_text(json.dumps(told | {"complete": False}))
    with pytest.raises(ValueError, match="half is unfinished"):
        call("--from", half, "--write")
    (half / "papers.json").write_text(json.dumps(told | {"world_commit": "1234567", "seed": 23}))
    call("--from", seeds[0], half, "--write")
    with pytest.raises(ValueError, match="rows of several worlds, 1234567, be6b821"):
        call("--table")


def test_seeds_are_run_one_after_the_other_and_written_at_once(seeds, call, monkeypatch):
    """The second seed's driver fails: the first seed's rows are kept."""
    asked = []

    def driver(out, *, seed, workers, console):
        asked.append((out, seed, workers))
        if seed == 22:
            raise ValueError("the disk is full")

    monkeypatch.setitem(sys.modules, "mmfast.papers.run", types.SimpleNamespace(papers=driver))
    with pytest.raises(ValueError, match="the disk is full"):
        call("--seeds", 21, 22, "--out", seeds[0].parent, "--workers", 3, "--write")
    assert asked == [(str(seeds[0].parent), 21, 3), (str(seeds[0].parent), 22, 3)]
    assert {row["seed"] for row in papers.kept()} == {21}


def test_the_docs_hold_what_the_rows_say():
    if not papers.RESULTS.exists():
        pytest.skip("no seed has been measured yet")
    table = papers.docs(papers.kept())
    assert table in PAGE.read_text(), f"put this there (`python -m bench.papers --table`):\n{table}"
