"""Random second starts in a used folder (other settings, places, damage, kills): each ends as the rules say, and what
it ends with are the weights of a run that went there undisturbed. The rules are written here once more, as a table."""

import json
import os
import random
import shutil
from dataclasses import dataclass

import pytest
import torch

from mmfast.config import load
from mmfast.job.checkpoint_files import complete, damage, read_sealed, seal
from mmfast.job.rows import read
from mmfast.train import Run, train
from tests.make.rank_processes import run_ranks
from tests.make.run_results import snapshot, untimed, weights
from tests.make.tiny_run import make_config, make_model, write_pairs
from tests.training.test_rollback import Killed, dying_after, flip

FREE = [
    {},
    {"optim.lr": 5e-4},
    {"optim.clip": 0.3},
    {"log.every": 2},
    {"train.keep_last": 1},
    {"parallel.activation_checkpointing": True},
    {"about": "again"},
    {"data.path": "another name"},
    {"data.path": "another folder"},
    {"model.path": "another place"},
]
REFUSED = [
    ({"objective.beta": 0.5}, "objective.beta was 0.1 and is 0.5"),
    ({"objective.loss": "ipo"}, "objective.loss was"),
    ({"model.freeze": ["vision", "projector"]}, "model.freeze was"),
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"train.pairs_per_step": 2}, "train.pairs_per_step was 4 and is 2"),
    ({"data.path": "other rows"}, "data.path: its examples were"),
    ({"model.path": "other weights"}, "model.path: its weights were"),
]
DAMAGE = ["none", "none", "none", "shard", "metadata", "state", "metrics", "half-written", "world"]


@dataclass
class Trial:
    """One second start: the folder as it is found, what is asked, and how it is disturbed."""

    found: str  # "finished", "after 2", "after 4" (killed there, of 4), "nothing"
    changes: dict
    refusal: str
    steps: int
    resume: str  # "auto", "never", "step-2"
    damage: str
    kill: tuple[str, int]  # ("no", 0), ("operation", n), ("step", n)


def draw(seed: int) -> Trial:
    r = random.Random(seed)
    refused = r.random() < 0.25
    changes, refusal = r.choice(REFUSED) if refused else (r.choice(FREE), "")
    found = r.choice(["finished", "finished", "after 4", "after 2", "after 2", "nothing"])
    resume = r.choice(["auto", "auto", "auto", "never", "step-2"])
    steps = r.choice([4, 4, 6, 3, 1])
    kill = r.choice([("no", 0), ("operation", r.randint(1, 30)), ("step", r.randint(1, 6))])
    return Trial(found, changes, refusal, steps, resume, r.choice(DAMAGE), kill)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Two models, two files of rows, the first of each once more elsewhere, the rows also with their pictures; and a
    finished run of 4 steps."""
    folder = tmp_path_factory.mktemp("ground")
    model, rows = make_model(folder), write_pairs(folder, 24)
    other = make_model(folder / "b", seed=1)
    shutil.copytree(model, folder / "moved" / "llava")
    shutil.copy(rows, folder / "again.jsonl")
    for file in (rows, *folder.glob("*.png")):
        (folder / "disk").mkdir(exist_ok=True)
        shutil.copy(file, folder / "disk")
    places = {
        "another name": folder / "again.jsonl",
        "another folder": folder / "disk" / rows.name,
        "other rows": write_pairs(folder, 20, name="other.jsonl"),
        "another place": folder / "moved" / "llava",
        "other weights": other,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.train.report", lambda folders: None)
        train(config_of(folder, model, rows, folder / "whole", {}, 4, "auto"))
    return folder, model, rows, places, {}


def config_of(folder, model, rows, run, changes, steps, resume):
    given = {"output_dir": str(run), "train.steps": steps, "train.resume": resume, "train.checkpoint_every": 2}
    return make_config(folder, model, rows, **given | {"train.keep_last": 9, "export.formats": ["hf"]} | changes)


def asked(ground, run, changes, steps, resume):
    folder, model, rows, places, _ = ground
    changes = dict(changes)
    rows = places[changes.pop("data.path")] if "data.path" in changes else rows
    model = places[changes.pop("model.path")] if "model.path" in changes else model
    return config_of(folder, model, rows, run, changes, steps, resume)


def undisturbed(ground, at, changes, steps):
    """(weights, metrics) of a run that goes on from step `at` of the first one with other settings, in a fresh folder:
    each is made once."""
    folder, _, _, _, made = ground
    key = json.dumps([at, changes, steps])
    if key not in made:
        place = folder / f"undisturbed-{len(made)}"
        run = place / "run"
        if at:
            run.mkdir(parents=True)
            shutil.copytree(folder / "whole" / "checkpoints" / f"step-{at}", run / "checkpoints" / f"step-{at}")
            shutil.copy(folder / "whole" / "metrics.jsonl", run)
        train(asked(ground, run, changes, steps, "auto"))
        made[key] = weights(place), untimed(run)
    return made[key]


def prepare(trial, ground, run):
    """The folder as the second start finds it."""
    folder = ground[0]
    if trial.found == "nothing":
        return
    shutil.copytree(folder / "whole", run)
    checkpoints = run / "checkpoints"
    if trial.found != "finished":
        (run / "finished.json").unlink()
        shutil.rmtree(run / "export")
    if trial.found == "after 2":
        shutil.rmtree(checkpoints / "step-4")
    newest = complete(checkpoints)[-1]
    if trial.damage == "shard":
        flip(next(newest.glob("*.distcp")))
    elif trial.damage == "metadata":
        (newest / ".metadata").write_bytes(b"\x80\x04")
    elif trial.damage == "state":
        (newest / "state.json").write_text((newest / "state.json").read_text()[:-9])
    elif trial.damage == "metrics":
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join([*lines[:3], lines[3][:9] + "\n"]))
    elif trial.damage == "half-written":
        (checkpoints / ".tmp-step-9").mkdir()
        (run / "metrics.jsonl").open("a").write('{"step": 9')
    elif trial.damage == "world":
        info = read_sealed(newest / "state.json") | {"world": 2}
        (newest / "state.json").write_text(json.dumps(seal(info)))


def rules(trial):
    """("refused", words) | ("finished", 4) | ("runs", from step, keeps what lay beyond aside)."""
    there = {"finished": [2, 4], "after 4": [2, 4], "after 2": [2], "nothing": []}[trial.found]
    broken = {there[-1]} if there and trial.damage in ("shard", "metadata", "state") else set()
    beyond = 3 if there and trial.damage == "metrics" else 99  # a checkpoint must lie before the last whole row
    if trial.resume == "never":
        return "runs", 0
    if trial.resume == "step-2":
        if 2 not in there:
            return "refused", "not a complete checkpoint"
        if 2 in broken:
            return (
                "refused",
                "step-2: .*(damaged|missing)" if not trial.refusal or trial.damage != "shard" else "resume",
            )
        at = 2
    else:
        seen = [step for step in there if step < beyond]
        # a flipped shard is seen only when all of it is read: after the settings, and not for a finished run
        small = [step for step in seen if step not in broken or trial.damage == "shard"]
        if there and not small:
            return "refused", "can be gone on from"
        if not there:
            return "runs", 0
        at = small[-1]
        if trial.refusal:
            return "refused", trial.refusal
        if trial.steps < at:
            return "refused", f"asks for {trial.steps} steps in all, and step {at} is reached"
        if trial.found == "finished" and at == 4 == trial.steps:
            return "finished", 4
        if at in broken:
            whole = [step for step in seen if step not in broken]
            if not whole:
                return "refused", "can be gone on from"
            at = whole[-1]
    if trial.refusal:
        return "refused", trial.refusal
    if trial.steps < at:
        return "refused", f"asks for {trial.steps} steps in all, and step {at} is reached"
    return "runs", at


def second_start(trial, ground, run, monkeypatch):
    """What comes of it: the error's text, "killed" or ""."""
    resume = str(run / "checkpoints" / "step-2") if trial.resume == "step-2" else trial.resume
    config = asked(ground, run, trial.changes, trial.steps, resume)
    kind, number = trial.kill
    with monkeypatch.context() as patch:
        if kind == "step":
            step = Run._update

            def dying(self, planned):
                if self.step == number:
                    self.saver.finish()
                    raise Killed
                step(self, planned)

            patch.setattr(Run, "_update", dying)
        if kind == "operation":  # counted from where the folder begins to change
            begin = Run._begin

            def counted(self):
                dying_after(patch, number)
                begin(self)

            patch.setattr(Run, "_begin", counted)
        try:
            train(config)
        except Killed:
            return "killed", config
        except RuntimeError as error:  # a writing thread that was "killed" says so
            assert "Killed" in str(error), error
            return "killed", config
        except ValueError as error:
            return str(error), config
    return "", config


def check(trial, ground, run, monkeypatch):
    prepare(trial, ground, run)
    before = snapshot(run) if run.exists() else None
    expected, value = rules(trial)
    happened, config = second_start(trial, ground, run, monkeypatch)
    if expected == "refused":
        assert happened and happened != "killed" and "\n" not in happened, (trial, happened)
        import re

        assert re.search(value, happened), (trial, value, happened)
    if expected in ("refused", "finished"):
        assert (snapshot(run) if run.exists() else None) == before, trial
    if expected == "finished":
        assert happened == "", (trial, happened)
    if expected != "runs":
        return expected
    if happened == "killed":  # and started again, with nothing said about where from
        again = config.model_copy(update={"train": config.train.model_copy(update={"resume": "auto"})})
        seen = complete(run / "checkpoints") if run.exists() else []
        assert all(not damage(path) for path in seen if path.name != "step-4" or trial.damage == "none"), trial
        before_decision = trial.resume != "auto" and not list(run.glob("set-aside-*")) and trial.kill[0] == "operation"
        if before_decision:  # killed before anything was decided: asked again as before
            again = config
        try:
            train(again)
        except ValueError as error:
            raise AssertionError((trial, str(error))) from error
    else:
        assert happened == "", (trial, happened)
    steps = trial.steps
    expected_weights, rows = undisturbed(ground, value, trial.changes, steps)
    found = weights_of(run)
    exact = "parallel.activation_checkpointing" not in trial.changes
    for name, tensor in expected_weights.items():
        assert torch.equal(found[name], tensor) if exact else torch.allclose(found[name], tensor, atol=1e-6), (
            trial,
            name,
        )
    assert (run / "finished.json").exists() and (run / "export" / "hf" / "README.md").exists(), trial
    if trial.changes.get("log.every") != 2 and exact:
        assert untimed(run) == rows, trial
    assert [row["step"] for row in read(run / "metrics.jsonl")][-1] == steps
    assert load(run / "config.toml").train.steps == steps
    assert all(int(path.name[5:]) <= steps and not damage(path) for path in complete(run / "checkpoints")), trial
    leftovers = {path.name for path in (run / "checkpoints").iterdir()} - {f"step-{n}" for n in range(1, 9)}
    assert not leftovers, (trial, leftovers)
    return "killed" if happened == "killed" else "runs"


def weights_of(run):
    link = run.parent / f"as-{run.name}"
    link.mkdir()
    os.symlink(run, link / "run")
    return weights(link)


def many(seeds, ground, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.train.report", lambda folders: None)
    ends = {}
    for seed in seeds:
        run = tmp_path / f"trial-{seed}" / "run"
        run.parent.mkdir()
        end = check(draw(seed), ground, run, monkeypatch)
        ends[end] = ends.get(end, 0) + 1
        shutil.rmtree(run.parent)
    return ends


def test_second_starts_end_as_the_rules_say(ground, tmp_path, monkeypatch):
    ends = many(range(16), ground, tmp_path, monkeypatch)
    assert len(ends) >= 3, ends  # all kinds of ends were among them


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_two_hundred_second_starts(ground, tmp_path, monkeypatch, part):
    many(range(100 + 25 * part, 125 + 25 * part), ground, tmp_path, monkeypatch)


def test_the_trials_reach_every_rule():
    """Of the two hundred, each change, kind of damage and kind of end occurs."""
    trials = [draw(seed) for seed in range(100, 300)]
    ends = [rules(trial)[0] for trial in trials]
    assert min(ends.count(end) for end in ("refused", "finished", "runs")) >= 4, ends
    assert {trial.damage for trial in trials} == set(DAMAGE)
    assert {json.dumps(trial.changes) for trial in trials} == {json.dumps(c) for c in [*FREE, *(c for c, _ in REFUSED)]}


def test_two_ranks_decide_alike(ground, tmp_path):
    """Finished, refused, damaged and set aside: each told by rank 0, and no rank waits for another."""
    folder, model, rows, *_ = ground
    run = tmp_path / "run"
    given = {"data.cache": str(folder / "cache")}
    config = config_of(folder, model, rows, run, given, 4, "auto")
    run_ranks(2, tmp_path, train, config)
    before = snapshot(run)
    run_ranks(2, tmp_path, train, config)
    assert snapshot(run) == before
    with pytest.raises(AssertionError, match=r"objective\.beta was 0\.1 and is 0\.5"):
        run_ranks(2, tmp_path, train, config_of(folder, model, rows, run, {"objective.beta": 0.5}, 4, "auto"))
    assert len(list(tmp_path.glob("errors.*"))) == 2 and snapshot(run) == before  # both ranks ended by it
    (run / "finished.json").unlink()
    flip(sorted((run / "checkpoints" / "step-4").glob("__1_*.distcp"))[0])
    run_ranks(2, tmp_path, train, config)
    assert len(list(run.glob("set-aside-*/step-4"))) == 1
    expected = weights(tmp_path)
    run_ranks(2, tmp_path, train, config_of(folder, model, rows, run, {}, 4, "never"))
    assert len(list(run.glob("set-aside-*/step-2"))) == 1 and len(list(run.glob("set-aside-*/step-4"))) == 2
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, expected[name])
