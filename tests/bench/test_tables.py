"""bench.tables: docs/benchmarks-rows.md is what the rows say, and no newest row is missing from it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bench import tables
from bench.ops import SUITES

KEY = ("op", "shape", "what", "tokens an answer", "mode", "dtype", "peer")
FILES = [name for name in tables.FILES if (tables.RESULTS / name).exists()]


def row(peer: str, median_s: float, **more: object) -> dict[str, object]:
    common = {"op": "linear_logprob", "shape": [4, 8, 16], "mode": "frozen head", "dtype": "float32", "torch": "2.13.0"}
    run = {"device": "a CPU", "date": "2026-01-02", "command": "python -m bench.ops --write"}
    return common | run | {"peer": peer, "median_s": median_s} | more


@pytest.fixture
def made(tmp_path: Path):
    """The page of rows of one's own."""

    def page(*rows: dict[str, object], file: str = "ops-cpu.jsonl") -> str:
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tables.page(tmp_path)

    return page


def body(page: str) -> list[list[str]]:
    """The cells of the tables' lines, headings and rulers left out."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| shape |")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_is_what_the_rows_say():
    assert tables.PAGE.read_text() == tables.page(), "python -m bench.tables --write"


def test_every_newest_row_is_on_the_page():
    """Counted here in another way: a median for each op, shape, mode, dtype and peer that there is."""
    page = tables.PAGE.read_text()
    wanted = 0
    for name in FILES:
        rows = [row for row in tables.read(tables.RESULTS / name) if "median_s" in row]
        wanted += len({json.dumps([row.get(part) for part in KEY]) for row in rows})
        for row in rows:
            shape = row.get("shape") or row["what"]
            shape = shape if isinstance(shape, str) else " x ".join(str(n) for n in shape)
            assert f"### {row['op']}" in page and f"| {shape}" in page and f" {row['peer']} |" in page
    shown = [cells[3:-1] for cells in body(page) if cells[2].startswith("median ")]
    assert sum(cell != "" for cells in shown for cell in cells) == wanted > 50


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("*.jsonl")), ids=lambda path: path.name)
def test_every_row_of_any_bench_says_where_when_and_how_it_was_measured(path):
    for row in tables.read(path):
        assert all(row.get(name) for name in ("device", "date", "command")), row
        assert any(row.get(name) for name in ("torch", "versions", "triton", "nvcc", "transformers")), row
        if path.name in FILES:
            assert tables.NOT_SAID not in tables.Run.of(row), row


def test_the_newest_wins_whatever_its_machine_and_place_in_the_file(made):
    old = row("mmfast", 0.001, device="an older CPU", date="2026-01-01")
    page = made(row("mmfast", 0.002), row("eager", 0.004), old)
    assert "| 2 (1.00) | 4 (2.00) | A |" in page and "a CPU, torch 2.13.0, 2026-01-02: `python" in page
    assert "an older CPU" not in page and "1 older rows of the same are in the file and not shown." in page
    later = row("mmfast", 0.003)  # of the same day: the later in the file
    assert "| 3 (1.00) | 4 (1.33) | A |" in made(row("mmfast", 0.002), row("eager", 0.004), later)


@pytest.mark.parametrize("other", [{"date": "2026-01-01"}, {"device": "a GPU"}, {"command": "python -m bench.gpu"}])
def test_no_line_compares_two_runs(made, other):
    lines = body(made(row("mmfast", 0.002), row("trl", 0.003), row("eager", 0.001, **other)))
    assert len(lines) == 2 and len({cells[-1] for cells in lines}) == 2
    alone = next(cells for cells in lines if "1" in cells)
    assert [cell for cell in alone[3:-1] if cell] == ["1"]  # no ratio: nothing stands beside it


def test_floors_and_parts_of_a_call_do_not_count(made):
    page = made(row("bare GEMMs", 0.001), row("eager", 0.003), row("mmfast", 0.002), row("mmfast kernel", 0.0015))
    assert "| mmfast | eager | bare GEMMs | mmfast kernel | run |" in page
    assert "| 2 (1.00) | 3 (1.50) | 1 (0.50) | 1.5 (0.75) | A |" in page and "No other does better." in page


def test_what_is_worse_is_said(made):
    page = made(
        row("mmfast", 0.002, processor_best_s=0.001, peak_mib=10.0),
        row("mmfast-torch", 0.004, processor_best_s=0.004, peak_mib=20.0),
        row("eager", 0.001, processor_best_s=0.0004, peak_mib=0.0),
        row("trl", 0.0015, processor_best_s=0.0015, peak_mib=30.0),
    )
    assert "- 4 x 8 x 16, frozen head, float32: median 2.00 times eager's; processor 2.50 times eager's; " in page
    assert "MiB 10, eager's 0\n" in page and "No other" not in page
    assert "mmfast-torch's" in made(row("mmfast", 0.002), row("mmfast-torch", 0.001))  # another of ours is another
    assert "better" not in made(row("mmfast", 0.002), row("bare GEMMs", 0.001)).partition("## On a CPU")[2]


def test_measures_and_units(made):
    seen = row("mmfast", 2e-4, device_s=0.0123, launches=18, replayed_to_the_same_bits=False, fraction_of_roof=0.5)
    lines = body(made(seen, row("eager", 1234.5), file="gpu.jsonl"))
    assert [cells[2:5] for cells in lines] == [
        ["median us", "200 (1.00)", "1234500000 (6172500.00)"],
        ["device ms", "12.3", ""],
        ["of the roof", "0.5", ""],
        ["launches", "18", ""],
        ["replayed the same", "no", ""],
    ]


def test_rows_of_tests_and_rows_that_lack_something(made):
    test = {
        "op": "all",
        "mode": "tests",
        "outcome": "exit 1: wrong\nmore",
        "s": 9.6,
        "device": "a GPU",
        "date": "today",
    }
    bare = row("mmfast", 1.0)
    del bare["command"]
    page = made(test, bare)
    assert "tests: exit 1: wrong (10 s, a GPU, today)" in page and "by hand (not said)" in page


def test_an_op_without_a_row_is_named(made):
    """An op that is measured and has no row yet would else be missed by nobody."""
    assert set(tables.MEASURED["ops-cpu.jsonl"]) == set(SUITES)
    assert {op for ops in tables.MEASURED.values() for op in ops} == set(tables.ABOUT)
    others = [op for op in SUITES if op != "linear_logprob"]
    assert re.search(r"No row yet: (.*)\.", made(row("mmfast", 1.0)))[1].split(", ") == others
    assert "No row yet" not in made(*(row("mmfast", 1.0, op=op) for op in SUITES))


def test_cases_that_differ_in_anything_stay_apart(made):
    told = [
        {},
        {"shape": "T=9"},
        {"what": "pairs"},
        {"tokens an answer": 7},
        {"mode": "trained"},
        {"dtype": "bfloat16"},
    ]
    page = made(*(row("mmfast", 1.0, **other) for other in told))
    assert len(body(page)) == len(told) and "4 x 8 x 16, pairs" in page and "4 x 8 x 16, 7 tokens an answer" in page


def test_written_or_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["bench.tables"])
    tables.main()
    assert capsys.readouterr().out == tables.page() and not tables.PAGE.exists()
    monkeypatch.setattr(sys, "argv", ["bench.tables", "--write"])
    tables.main()
    assert tables.PAGE.read_text() == tables.page()
