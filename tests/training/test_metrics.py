"""The rows of metrics.jsonl, and what trackers are given: by the packages themselves where these are installed."""

import json
import re

import pytest

from mmfast.job.rows import cut_back, read
from mmfast.packages import how_to_install
from mmfast.training.metrics import Metrics, check_trackers


def _run(folder, name, scale):
    folder = folder / name
    folder.mkdir()
    metrics = Metrics(folder)
    for step in range(1, 6):
        metrics.log(step, {"loss": scale / step, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.1 * step})
    metrics.log(5, {"eval/loss": scale, "grad_norm": float("nan")})
    metrics.close()
    return folder


def test_rows_and_cutting_back(tmp_path):
    run = _run(tmp_path, "a", 1.0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    assert [row["step"] for row in read(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 5]
    cut_back(run, 3)
    rows = read(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[1]["loss"] == 0.5


def test_nan_is_valid_json(tmp_path):
    text = (_run(tmp_path, "a", 1.0) / "metrics.jsonl").read_text()
    assert "NaN" not in text and json.loads(text.splitlines()[-1])["grad_norm"] == "nan"


def test_missing_tracker_is_named():
    import importlib.util

    for name in ("tensorboard", "wandb", "trackio"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(ValueError, match=re.escape(how_to_install(name))):
                check_trackers([name])
            return
    pytest.skip("every tracker is installed here")
