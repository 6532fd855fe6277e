"""docs/evaluation.md lists what there is: a row a benchmark, every layout, every part that a table refuses."""

from pathlib import Path

from mmfast.evals.answering import PRESETS
from mmfast.evals.benches import benches
from mmfast.evals.catalogue import catalogue, written
from mmfast.evals.official import LAYOUTS

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_page_has_the_table_of_benchmarks():
    assert catalogue() in PAGE.read_text(), "python -m mmfast.evals.catalogue docs/evaluation.md"
    assert all(f"| `{name}` |" in PAGE.read_text() for name in benches())


def test_the_table_is_written_anew(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().replace("| `pope` |", "| `gone` |"))
    written(page)
    assert page.read_text() == PAGE.read_text()


def test_the_page_names_every_layout_and_preset():
    page = PAGE.read_text()
    assert [name for name in (*LAYOUTS, *PRESETS) if f"`{name}`" not in page] == []
