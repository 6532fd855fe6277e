"""bench.step on a tiny model: both sides run, and take the same steps as TRL."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import bench.step
from mmfast.world import models as world


@pytest.mark.slow
def test_the_sides_take_the_same_steps(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setattr(
        bench.step, "make_directory", lambda shape, folder: world.tiny_model("llava", folder / shape, vocab=2000)
    )
    arguments = argparse.Namespace(
        shape="llava-64m",
        device="cpu",
        steps=3,
        checkpointing=False,
        lora=False,
        write=False,
        threads=1,
        compile=False,
        before=None,
    )
    rows = bench.step.run(arguments, tmp_path)
    assert [row["what"] for row in rows] == ["trl isolated", "mmfast isolated", "mmfast group"]
    assert rows[1]["largest_loss_gap"] < 1e-4 and rows[1]["rows"] < rows[1]["tokens"]
    # beside another checkout: this one
    arguments.before, again = Path.cwd(), tmp_path / "again"
    again.mkdir()
    before, now = bench.step.run(arguments, again)
    assert before["what"].endswith("before") and now["largest_loss_gap"] == 0
    assert now["x_products"] > 1 and 0.1 < now["x_before_cpu"] < 10
