"""The rows of metrics.jsonl, and what trackers are given: by the packages themselves where these are installed."""

import base64
import json
import os
import re
import sqlite3
import subprocess
import sys

import pytest
from PIL import Image

from mmfast.job.rows import cut_back, read
from mmfast.packages import how_to_install
from mmfast.pages import png
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


def test_missing_tracker_is_named(monkeypatch):
    lacking = {"tensorboard", "wandb", "trackio", "pandas"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in lacking else object())
    for name in ("tensorboard", "wandb", "trackio"):
        told = f"log.trackers: {name!r} is not installed: {how_to_install(name)}"
        with pytest.raises(ValueError, match=re.escape(told)):
            check_trackers([name])
    lacking.remove("trackio")
    with pytest.raises(ValueError, match=re.escape("'trackio' needs pandas, which is not installed: pip install")):
        check_trackers(["trackio"])


class Recorder:
    """Stands for wandb and for trackio: what both are given."""

    def __init__(self):
        self.begun, self.logged = [], []

    def init(self, **given):
        self.begun.append(given)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append("finished")

    def Image(self, picture):
        return ("image", picture.size)

    def Table(self, columns=(), data=(), dataframe=None):
        return [list(columns), *data] if dataframe is None else [list(dataframe.columns), *dataframe.values.tolist()]


@pytest.fixture
def recorded(monkeypatch):
    made = {"wandb": Recorder(), "trackio": Recorder()}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("mmfast.training.metrics.check_trackers", lambda names: None)
    return made


PICTURE = base64.b64encode(png(Image.new("RGB", (640, 64), "red"))).decode()
SAMPLES = [
    {"images": [PICTURE, PICTURE], "prompt": "What?", "answer": "a *b*", "chosen": "c", "rejected": "d"},
    {"images": [], "prompt": "Why?", "answer": "", "chosen": "e"},
]


def logged_run(folder, *trackers, first=1, last=2, **named):
    settings = {"optim": {"lr": 0.1}, "output_dir": str(folder)}
    metrics = Metrics(folder, trackers, settings=settings, step=first - 1, **named)
    for step in range(first, last + 1):
        metrics.log(step, {"loss": 1.0 / step})
    metrics.log_samples(last, SAMPLES)
    metrics.close()


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_gets_config_samples_with_pictures_and_one_run_over_a_resume(tmp_path, recorded, kind):
    module = recorded[kind]
    logged_run(tmp_path, kind, name="mine")
    (begun,) = module.begun
    assert begun["config"]["optim"] == {"lr": 0.1} and begun["project"] == "mmfast" and begun["resume"] == "allow"
    assert module.logged[:2] == [(1, {"loss": 1.0}), (2, {"loss": 0.5})] and module.logged[-1] == "finished"
    step, values = module.logged[2]
    assert step == 2 and values["samples"] == [
        ["picture", "picture 2", "prompt", "answer", "chosen", "rejected"],
        [("image", (320, 32)), ("image", (320, 32)), "What?", "a *b*", "c", "d"],
        [None, None, "Why?", "", "e", ""],
    ]
    # Another start in the folder is the same run, one in another folder is not
    logged_run(tmp_path, kind, name="mine", first=3, last=4)
    (tmp_path / "other").mkdir()
    logged_run(tmp_path / "other", kind, name="mine")
    own = [given["id"] if kind == "wandb" else given["name"] for given in module.begun]
    assert own[0] == own[1] != own[2]
    assert [given.get("dir") for given in module.begun[:2]] == [str(tmp_path) if kind == "wandb" else None] * 2
    assert begun["name"] == "mine" if kind == "wandb" else begun["name"].startswith("mine-")


def test_samples_lie_in_the_folder_too(tmp_path):
    logged_run(tmp_path)
    assert read(tmp_path / "samples.jsonl") == [{"step": 2, **sample} for sample in SAMPLES]
    assert not (tmp_path / "trackers.json").exists()


def test_a_line_of_starts_that_is_given_up_takes_its_tracker_s_run_along(tmp_path, recorded):
    from mmfast.job.runfolder import begin

    (tmp_path / "checkpoints").mkdir()
    logged_run(tmp_path, "wandb")
    begin(tmp_path, 0, "", resume="never")
    logged_run(tmp_path, "wandb")
    first, second = (given["id"] for given in recorded["wandb"].begun)
    assert first != second


def test_tensorboard_has_scalars_config_pictures_and_texts_and_nothing_twice(tmp_path):
    """By its own reader. A run that was killed after step 3 goes on from 2."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged_run(tmp_path, "tensorboard", last=3)
    logged_run(tmp_path, "tensorboard", first=3, last=4)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(n, pytest.approx(1 / n)) for n in (1, 2, 3, 4)]
    assert sorted(tags["images"]) == ["samples/0.0", "samples/0.1"]
    assert (events.Images("samples/0.0")[0].width, events.Images("samples/0.0")[0].height) == (320, 32)
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert "    a *b*" in texts["samples/0/text_summary"] and '"lr": 0.1' in texts["config/text_summary"]


def test_wandb_takes_what_it_is_given(tmp_path, monkeypatch):
    """The package itself, offline."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for place in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(tmp_path / "kept"))
    logged_run(tmp_path, "wandb")
    logged_run(tmp_path, "wandb", first=3, last=4)
    ours = json.loads((tmp_path / "trackers.json").read_text())["id"]
    runs = [path for path in (tmp_path / "wandb").iterdir() if path.is_dir() and not path.is_symlink()]
    assert {path.name.rpartition("-")[2] for path in runs} == {ours}
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("media/table/*.json")]
    assert len(tables) == 2 and tables[0]["columns"][:3] == ["picture", "picture 2", "prompt"]
    assert tables[0]["data"] == [["Image", "Image", "What?", "a *b*", "c", "d"], [None, None, "Why?", "", "e", ""]]
    staged = [path.read_bytes()[:4] for path in (tmp_path / "kept").rglob("staging/*") if path.is_file()]
    assert b"\x89PNG" in staged  # the pictures themselves, for the artifact that the table becomes


def test_trackio_takes_what_it_is_given(tmp_path):
    """The package itself, in a process of its own: it reads where its files lie when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "import sys; from pathlib import Path; from tests.training.test_metrics import logged_run\n"
        "logged_run(Path(sys.argv[1]), 'trackio'); logged_run(Path(sys.argv[1]), 'trackio', first=3, last=4)"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, capture_output=True)
    ours = json.loads((tmp_path / "trackers.json").read_text())["id"]
    with sqlite3.connect(tmp_path / "store" / "mmfast.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    assert {name for name, _, _ in rows} == {f"{tmp_path.name}-{ours}"}
    told = [(step, json.loads(values)) for _, step, values in rows]
    assert [step for step, values in told if "loss" in values] == [1, 2, 3, 4]
    tables = [values["samples"] for _, values in told if "samples" in values]
    assert len(tables) == 2 and "What?" in json.dumps(tables) and "trackio.image" in json.dumps(tables)
