"""A stop by a signal: a checkpoint first, and nobody takes it for success."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed.run import get_args_parser

from mmfast.config import dump
from mmfast.job.checkpoint_files import complete
from mmfast.job.opening import Job
from mmfast.job.rows import read
from mmfast.job.runtime import Stopped, start
from mmfast.train import Run
from mmfast.training.objective import objective_of
from tests.make.run_results import snapshot, untimed
from tests.make.tiny_run import make_config, write_pairs
from tests.training.test_resume import config_of, start_again


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("mmfast.train.report", lambda folders: (folders[0] / "report.html").write_text("plots"))


def signals_in_step(monkeypatch, at, *numbers):
    step = Run._update

    def signalled(self, planned):
        if self.step == at:
            for each in numbers:
                os.kill(os.getpid(), each)
        step(self, planned)

    monkeypatch.setattr(Run, "_update", signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_one_process_exits_with_75_after_its_checkpoint(tiny, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        signals_in_step(patch, 1, number)
        start_again(tmp_path, tiny)
    assert stopped.value.code == 75
    run = tmp_path / "run"
    assert [path.name for path in complete(run / "checkpoints")] == ["step-1"]
    told = json.loads((run / "stopped").read_text())
    assert told["step"] == 1 and told["signal"] == signal.Signals(number).name and told["time"].startswith("20")
    assert not (run / "export").exists() and not (run / "finished.json").exists()
    start_again(tmp_path, tiny)
    assert not (run / "stopped").exists() and (run / "finished.json").exists()


def test_the_second_ctrl_c_stops_now(tiny, tmp_path, monkeypatch):
    signals_in_step(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start_again(tmp_path, tiny)
    assert "step-3" not in [path.name for path in complete(tmp_path / "run" / "checkpoints")]
    assert not (tmp_path / "run" / "stopped").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_torchrun_a_stopped_worker_exits_with_0(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    signals_in_step(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        start_again(tmp_path, tiny)
    assert stopped.value.code == 0 and (tmp_path / "run" / "stopped").exists()


def test_a_signal_in_the_last_step_is_no_stop(tiny, tmp_path, monkeypatch):
    signals_in_step(monkeypatch, 4, signal.SIGTERM)
    start_again(tmp_path, tiny)
    assert (tmp_path / "run" / "finished.json").exists() and not (tmp_path / "run" / "stopped").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_torchrun_with_worker_processes_stops_and_goes_on(tiny, tmp_path, number):
    """The agent signals whole process groups, the pack builders too: they must live until the checkpoint."""
    data = write_pairs(tmp_path, 260)
    config = make_config(
        tmp_path, tiny[0], data, **{"train.steps": 4000, "data.workers": 2, "train.checkpoint_every": 0, "log.every": 1}
    )
    path, run = tmp_path / "c.toml", tmp_path / "run"
    path.write_text(dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = {name for action in get_args_parser()._actions for name in action.option_strings}
    command += ["--shutdown-timeout", "300"] if "--shutdown-timeout" in options else []  # torch 2.11's is 30 seconds
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "-m", "mmfast.train", str(path)], stdout=log, stderr=log)
        begin = time.monotonic()
        while not ((run / "metrics.jsonl").exists() and read(run / "metrics.jsonl")):
            assert process.poll() is None and time.monotonic() - begin < 500, (tmp_path / "log").read_text()
            time.sleep(0.2)
        process.send_signal(number)
        process.wait(500)
    told = (tmp_path / "log").read_text()
    assert (run / "stopped").exists(), told
    stopped = json.loads((run / "stopped").read_text())
    assert stopped["signal"] == number.name
    assert [path.name for path in complete(run / "checkpoints")] == [f"step-{stopped['step']}"]
    assert "killed by signal" not in told and told.count("asked to stop") == 1


# evaluation and samples


def evaluated(tmp_path, **more):
    held_out = write_pairs(tmp_path, 6, name="eval.jsonl", split="test")
    return {
        "data.eval_path": str(held_out),
        "train.eval_every": 2,
        "train.eval_samples": 1,
        "train.eval_tokens": 3,
        "export.formats": [],
        **more,
    }


def test_samples_that_fail_end_nothing(tiny, tmp_path, monkeypatch, capfd):
    def broken(_):
        raise RuntimeError("The following model_kwargs are not used\nby the model")

    monkeypatch.setattr("mmfast.training.evaluation.Evaluation.samples", broken)
    last = start_again(tmp_path, tiny, **evaluated(tmp_path))
    told = capfd.readouterr().err
    assert told.count("warning: no samples at step 0: RuntimeError: The following model_kwargs are not used\n") == 1
    assert "eval/loss" in last and (tmp_path / "run" / "finished.json").exists()


def test_an_evaluation_that_dies_has_the_checkpoint_behind_it(tiny, tmp_path, monkeypatch):
    """The trial: all training done, the evaluation of the last step failed, and no checkpoint was there."""
    given = evaluated(tmp_path, **{"train.eval_every": 0, "train.checkpoint_every": 0})

    def broken(*_):
        raise RuntimeError("no")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr("mmfast.training.evaluation.Evaluation.run", broken)
        start_again(tmp_path, tiny, **given)
    assert [path.name for path in complete(tmp_path / "run" / "checkpoints")] == ["step-4"]
    start_again(tmp_path, tiny, **given)
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 4]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["run", "write", "note", "noted"])
def test_killed_around_an_evaluation_nothing_is_lost_or_doubled(tiny, tmp_path, monkeypatch, where):
    """After the checkpoint, before or after its rows, before or after it is noted in the checkpoint."""
    given = evaluated(tmp_path, **{"train.best_metric": "eval/loss", "data.cache": str(tmp_path / "cache")})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start_again(whole, tiny, **given)
    target = {
        "run": "mmfast.training.evaluation.Evaluation.run",
        "write": "mmfast.training.metrics.Metrics.log_samples",
        "note": "mmfast.training.checkpoint.Checkpointer.note",
        "noted": "mmfast.training.checkpoint.Checkpointer.note",
    }[where]
    from mmfast.training.checkpoint import Checkpointer
    from mmfast.training.metrics import Metrics

    real = {"noted": Checkpointer.note, "write": Metrics.log_samples}

    def dying(*arguments):
        if where == "noted" or (first := where == "write" and arguments[1] == 0):
            real[where](*arguments)
        if where != "write" or not first:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, dying)
        start_again(cut, tiny, **given)
    last = start_again(cut, tiny, **given)
    assert untimed(cut / "run") == untimed(whole / "run")
    assert (cut / "run" / "samples.jsonl").read_bytes() == (whole / "run" / "samples.jsonl").read_bytes()
    assert last["eval/loss"] == read(whole / "run" / "metrics.jsonl")[-1]["eval/loss"]
    for a, b in zip(complete(cut / "run" / "checkpoints"), complete(whole / "run" / "checkpoints"), strict=True):
        assert (a / "evaluation.json").read_bytes() == (b / "evaluation.json").read_bytes()


def test_a_skipped_step_before_a_checkpoint_is_told_by_the_next_start(tiny, tmp_path, monkeypatch, capfd):
    """Its samples were forgotten: the checkpoint had settled the window, and kept no word of it."""
    given = {"log.every": 4, "train.checkpoint_every": 2}
    config = config_of(tmp_path, tiny, **given)
    runtime = start(config)
    run = Run(Job(config, runtime), objective_of(config))
    objective = run.objective

    def poisoned(logps, pack):
        loss, sums = objective(logps, pack)
        return (loss * float("nan") if run.step == 0 else loss), sums

    poisoned.reads_reference = False
    run.objective = poisoned
    with monkeypatch.context() as patch, pytest.raises(Killed):
        step = Run._update

        def dying(self, planned):
            if self.step == 3:
                self.saver.finish()
                raise Killed
            step(self, planned)

        patch.setattr(Run, "_update", dying)
        run.loop()
    runtime.close()
    assert "non-finite" not in capfd.readouterr().err
    start_again(tmp_path, tiny, **given)
    assert "step 1 turned non-finite and was skipped; its samples: train" in capfd.readouterr().err


def test_metrics_of_a_resumed_run_are_on_its_card(tiny, tmp_path, monkeypatch):
    """Killed after its last log step: nothing is logged any more, and the card had an empty table."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mmfast.train.export_run", lambda *_: (_ for _ in ()).throw(Killed()))
        start_again(tmp_path, tiny)
    last = start_again(tmp_path, tiny)
    card = snapshot(tmp_path / "run")["export/hf/README.md"].decode()
    assert last["loss"] == read(tmp_path / "run" / "metrics.jsonl")[-1]["loss"]
    assert f"| loss | {last['loss']:.5g} |" in card


def test_best_is_judged_on_one_held_out_set(tiny, tmp_path):
    """Numbers of another eval_path are not compared with the new one's."""
    given = evaluated(tmp_path, **{"train.best_metric": "eval/loss"})
    start_again(tmp_path, tiny, **given, **{"train.steps": 2})
    state = complete(tmp_path / "run" / "checkpoints")[-1] / "evaluation.json"
    first = json.loads(state.read_text())
    other = write_pairs(tmp_path, 8, name="other.jsonl", split="test")
    start_again(tmp_path, tiny, **given | {"data.eval_path": str(other)}, **{"train.steps": 4})
    second = json.loads((complete(tmp_path / "run" / "checkpoints")[-1] / "evaluation.json").read_text())
    assert first["data"] != second["data"]
    from mmfast.job.checkpoint_files import best_checkpoint

    folder = tmp_path / "run" / "checkpoints"
    assert best_checkpoint(folder, "eval/loss", first["data"]).name == "step-2"
    assert best_checkpoint(folder, "eval/loss", second["data"]).name == "step-4"
