"""The rows of metrics.jsonl, the report made of them, and trackers that are not installed."""

import json
import re

import pytest

from mmfast.job.rows import cut_back, read
from mmfast.packages import how_to_install
from mmfast.training.metrics import Metrics, check_trackers
from mmfast.training.report import report


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


def test_report_of_one_and_of_two(tmp_path):
    a, b = _run(tmp_path, "a", 1.0), _run(tmp_path, "b", 2.0)
    sample = {"step": 5, "prompt": "<what?>", "answer": "a red square", "images": ["iVBORw0KGgo="]}
    (a / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    page = report([a])
    text = page.read_text()
    assert page == a / "report.html" and "a red square" in text and "&lt;what?&gt;" in text
    assert (a / "report.png").read_bytes()[:4] == b"\x89PNG"
    both = report([a, b], tmp_path / "both.html").read_text()
    assert "<th>a</th><th>b</th>" in both
    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        report([tmp_path])


def test_missing_tracker_is_named():
    import importlib.util

    for name in ("tensorboard", "wandb", "trackio"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(ValueError, match=re.escape(how_to_install(name))):
                check_trackers([name])
            return
    pytest.skip("every tracker is installed here")


def test_a_report_says_what_changed_in_the_words_of_the_samples(tmp_path):
    """From the first samples to the last; a phrase that no truth has is flagged, for it may be all that was learnt."""
    rows = [{"step": 1, "loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    truths = [f"one {colour} circle" for colour in ("red", "blue", "green", "orange")] * 5
    samples = [{"step": 0, "prompt": "?", "answer": t.replace("one", "two"), "chosen": t} for t in truths]
    samples += [{"step": 9, "prompt": "?", "answer": f"{t} and lots of space", "chosen": t} for t in truths]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    page = report([tmp_path]).read_text()
    assert "What changed in the words" in page and "step 0" in page and "step 9" in page
    assert "lots of space</mark>" in page and "no truth says it" in page
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples[20:]))
    page = report([tmp_path]).read_text()
    assert "<th>truths</th><th>step 9</th>" in page and "lots of space</mark>" in page
    (tmp_path / "samples.jsonl").write_text("")
    assert "What changed" not in report([tmp_path]).read_text()
