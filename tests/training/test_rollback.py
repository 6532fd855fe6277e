"""Going back in a run folder: what lay beyond is set aside, never resumed, never counted, wherever a kill falls."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from mmfast.config import load
from mmfast.job import runfolder
from mmfast.job.checkpoint_files import complete, damage, pending, present, read_info
from mmfast.job.rows import last_whole_step, read
from mmfast.train import Run, train
from mmfast.training.resume import _next
from tests.make.run_results import snapshot, untimed, weights
from tests.training.test_resume import config_of, start_again


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("mmfast.train.report", lambda folders: (folders[0] / "report.html").write_text("plots"))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A finished run of 8 steps with checkpoints 2, 4, 6, 8."""
    folder = tmp_path_factory.mktemp("eight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.train.report", lambda folders: (folders[0] / "report.html").write_text("plots"))
        train(config_of(folder, tiny, **{"train.steps": 8}))
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a")
    return tmp_path / "a"


def names(run):
    return [path.name for path in complete(run / "checkpoints")]


def aside(run):
    return sorted(run.glob("set-aside-*"))


class Killed(BaseException):
    pass


def kill_in_step(monkeypatch, at):
    step = Run._update

    def dying(self, planned):
        if self.step == at:
            self.saver.finish()
            raise Killed
        step(self, planned)

    monkeypatch.setattr(Run, "_update", dying)


def test_a_new_run_in_a_used_folder_is_not_its_predecessor(copy, tiny, monkeypatch):
    """The trial: "never" at a lower rate, killed in step 5, started again: the OLD run was resumed and exported."""
    run, lower = copy / "run", {"train.steps": 8, "optim.lr": 1e-4}
    old = snapshot(run)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 5)
        start_again(copy, tiny, **lower, **{"train.resume": "never"})
    assert names(run) == ["step-2", "step-4"]
    (there,) = aside(run)
    assert sorted(path.name for path in there.glob("step-*")) == ["step-2", "step-4", "step-6", "step-8"]
    kept = snapshot(there)  # the old run, whole
    for name, data in old.items():
        assert name == "started.json" or kept[name.removeprefix("checkpoints/")] == data
    start_again(copy, tiny, **lower)
    assert names(run) == ["step-2", "step-4", "step-6", "step-8"] and not pending(run / "checkpoints")
    fresh = copy.parent / "fresh"
    start_again(fresh, tiny, **lower)
    assert untimed(run) == untimed(fresh / "run")
    for name, value in weights(copy).items():
        assert torch.equal(value, weights(fresh)[name])


def test_back_to_a_named_checkpoint(copy, tiny, monkeypatch):
    """Checkpoints of the abandoned branch were kept and the new ones deleted; a kill then took up the abandoned one."""
    run, lower = copy / "run", {"train.steps": 8, "optim.lr": 1e-4, "train.checkpoint_every": 1, "train.keep_last": 2}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 7)
        start_again(copy, tiny, **lower, **{"train.resume": str(run / "checkpoints" / "step-4")})
    assert names(run) == ["step-5", "step-6"]
    (there,) = aside(run)
    assert sorted(path.name for path in there.glob("step-*")) == ["step-6", "step-8"]
    assert [row["step"] for row in read(there / "metrics.jsonl")] == [5, 6, 7, 8]
    assert (there / "export" / "hf" / "README.md").exists() and not (run / "export").exists()
    assert load(there / "config.toml").optim.lr == 1e-3
    start_again(copy, tiny, **lower)
    assert names(run) == ["step-7", "step-8"] and len(aside(run)) == 1
    rows = read(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[4]["learning_rate"] < 2e-4 < rows[3]["learning_rate"]


def test_a_checkpoint_from_elsewhere_is_adopted(copy, tiny, whole):
    """Also one that was set aside before: the folder then holds that line, and a next start goes on from it."""
    run = copy / "run"
    start_again(copy, tiny, **{"train.steps": 2, "train.resume": "never", "optim.lr": 1e-4})
    (there,) = aside(run)
    source = there / "step-6"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 7)
        start_again(copy, tiny, **{"train.steps": 8, "train.resume": str(source)})
    assert names(run) == ["step-6"] and source.is_dir() and len(aside(run)) == 2
    start_again(copy, tiny, **{"train.steps": 8})
    assert names(run) == ["step-6", "step-8"]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(copy)[name])


@pytest.mark.parametrize("resume", ["never", "step-4", "elsewhere"])
def test_killed_between_any_two_operations_of_going_back(whole, tmp_path, monkeypatch, resume):
    """Every operation on a file, in turn, is the last one done. Before the journal stands the old line does; from then
    on only the new: it is what a next start sees, and it ends what was begun."""
    other = tmp_path / "other"
    shutil.copytree(whole / "run", other)
    instant, decided = 0, 0
    while True:
        instant += 1
        run = tmp_path / f"run-{instant}"
        shutil.copytree(whole / "run", run)
        sources = {
            "never": None,
            "step-4": run / "checkpoints" / "step-4",
            "elsewhere": other / "checkpoints" / "step-6",
        }
        step = {"never": 0, "step-4": 4, "elsewhere": 6}[resume]
        expected = {"never": [], "step-4": ["step-2", "step-4"], "elsewhere": ["step-6"]}[resume]
        with monkeypatch.context() as patch:
            dying_after(patch, instant)
            try:
                runfolder.begin(run, step, "new = 1\n", resume=resume, source=sources[resume])
                killed = False
            except Killed:
                killed = True
        seen = [path.name.removeprefix(".adopted-") for path in present(run / "checkpoints")]
        assert all(not damage(path) for path in present(run / "checkpoints"))
        if seen == ["step-2", "step-4", "step-6", "step-8"]:
            assert killed and not decided, "the old line came back"
            assert "new" not in (run / "config.toml").read_text()
            assert [row["step"] for row in read(run / "metrics.jsonl")] == list(range(1, 9))
        else:
            assert seen == expected
            decided += 1
        found = _next(run, "auto", [])  # the next start, "auto": where it would go on from
        assert [found[0].name.removeprefix(".adopted-")] == seen[-1:] if found else not seen
        step_now = int(seen[-1][5:]) if seen else 0
        runfolder.begin(
            run, step_now, "auto = 1\n", resume="auto", source=present(run / "checkpoints")[-1] if seen else None
        )
        assert names(run) == seen and not pending(run / "checkpoints")
        assert not [*run.glob(".*.tmp"), *(run / "checkpoints").glob(".*.tmp")]
        assert (run / "config.toml").read_text() == "auto = 1\n"
        rows = [row["step"] for row in read(run / "metrics.jsonl")] if (run / "metrics.jsonl").exists() else []
        if seen == expected:
            (there,) = aside(run)
            gone = {"never": 4, "step-4": 2, "elsewhere": 4}[resume]
            assert len(list(there.glob("step-*"))) == gone and (there / "export").is_dir()
            assert rows == list(range(1, step + 1 if resume == "step-4" else 1))
            assert len(rows) + len(read(there / "metrics.jsonl")) == 8  # none is lost
        if not killed:
            break
    assert decided > 5 and instant > 10


def dying_after(patch, count):
    """The `count`-th operation on files that begin() makes is not done: the process is gone."""
    done: list[str] = []

    def counted(owner, name):
        real = getattr(owner, name)

        def operation(*a, **k):
            ours = str(a[0]).endswith(runfolder.LOCK)  # a dead process gives that back, whatever it wanted
            if len(done) + 1 >= count and not ours:
                raise Killed
            done.append(name)
            return real(*a, **k)

        patch.setattr(owner, name, operation)

    for name in ("rename", "replace", "link"):
        counted(os, name)
    for name in ("unlink", "mkdir", "write_bytes"):
        counted(Path, name)


def test_torchrun_starting_a_run_again_does_not_go_back_twice(copy, tiny, monkeypatch):
    """--max-restarts repeats the command line, `never` included: what the first start wrote is gone on from."""
    run, again = copy / "run", {"train.steps": 8, "train.resume": "never", "optim.lr": 1e-4}
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 5)
        start_again(copy, tiny, **again)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    start_again(copy, tiny, **again)
    assert names(run) == ["step-2", "step-4", "step-6", "step-8"] and len(aside(run)) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")  # another job, whose first start died before it began
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 1)
        start_again(copy, tiny, **again)
    assert names(run) == [] and len(aside(run)) == 2


# damage


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(bytes(data))


def spoil(run, kind):
    newest = run / "checkpoints" / "step-8"
    if kind == "shard":
        flip(next(newest.glob("*.distcp")))
    elif kind == "shard cut":
        file = next(newest.glob("*.distcp"))
        file.write_bytes(file.read_bytes()[:100])
    elif kind == "shard gone":
        next(newest.glob("*.distcp")).unlink()
    elif kind == "metadata":
        flip(newest / ".metadata", 0.3)
    elif kind == "metadata cut":
        (newest / ".metadata").write_bytes((newest / ".metadata").read_bytes()[:50])
    elif kind == "metadata gone":
        (newest / ".metadata").unlink()
    elif kind == "config":
        (newest / "config.toml").write_text("seed = 3\n")
    elif kind == "state":
        flip(newest / "state.json", 0.2)
    elif kind == "state number":
        text = (newest / "state.json").read_text()
        (newest / "state.json").write_text(text.replace('"step": 8', '"step": 9'))
    elif kind == "state cut":
        (newest / "state.json").write_text('{"sha256": "ab')
    elif kind == "state gone":
        (newest / "state.json").unlink()
    elif kind == "state of another kind":
        (newest / "state.json").write_text("[1, 2]")
    elif kind == "metrics":
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        lines[7] = lines[7][:30] + b"\n"
        (run / "metrics.jsonl").write_bytes(b"".join(lines))


KINDS = {
    "shard": "distcp is damaged", "shard cut": "distcp is damaged", "shard gone": "distcp is missing",
    "metadata": ".metadata is damaged", "metadata cut": ".metadata is damaged", "metadata gone": ".metadata is missing",
    "config": "config.toml is damaged", "state": "state.json is damaged", "state number": "state.json is damaged",
    "state cut": "state.json is damaged", "state gone": "state.json is missing",
    "state of another kind": "state.json is damaged", "metrics": "metrics.jsonl line 8 is damaged",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_an_older_checkpoint_gone_on_from(copy, tiny, whole, capfd, kind):
    run = copy / "run"
    (run / "finished.json").unlink()
    spoil(run, kind)
    if kind != "metrics":  # named by the user, it is refused
        before = snapshot(run)
        with pytest.raises(ValueError, match="checkpoint") as told:
            start_again(copy, tiny, **{"train.steps": 8, "train.resume": str(run / "checkpoints" / "step-8")})
        if kind != "state gone":
            assert KINDS[kind] in str(told.value) and "\n" not in str(told.value)
        assert snapshot(run) == before
    start_again(copy, tiny, **{"train.steps": 8})
    told = capfd.readouterr().err
    assert KINDS[kind] in told and "going back to an older checkpoint" in told and "step-6" in told
    assert untimed(run) == untimed(whole / "run")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(copy)[name])
    assert [path.name for there in aside(run) for path in there.glob("step-*")] == ["step-8"]


def test_when_nothing_whole_is_left_it_is_said(copy, tiny):
    for path in complete(copy / "run" / "checkpoints"):
        (path / "state.json").write_text("{}")
    before = snapshot(copy / "run")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be gone on from.*never") as told:
        start_again(copy, tiny, **{"train.steps": 8})
    assert "\n" not in str(told.value) and snapshot(copy / "run") == before


def test_damaged_metrics_name_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste\n{"step": 4}\n{"st')
    assert last_whole_step(tmp_path) == (2, f"{path} line 3 is damaged")
    with pytest.raises(ValueError, match="line 3 is damaged"):
        read(path)
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_whole_step(tmp_path) == (0, "") and len(read(path)) == 2


def test_an_older_format_is_named(copy, tiny):
    for path in complete(copy / "run" / "checkpoints"):
        (path / "state.json").write_text(json.dumps({"step": 8, "identity": {}}))
    assert "state.json is damaged" in damage(path)
    from mmfast.job.checkpoint_files import seal

    (path / "state.json").write_text(json.dumps(seal({"format": 1, "step": 8})))
    with pytest.raises(ValueError, match=r"has format 1, another version's; this one reads 2"):
        read_info(path)
