"""Whole runs on a GPU: what the CPU's tests claim of training, checkpoints, evaluation and answers holds there too.

`make gpu` runs them. MMFAST_REHEARSE=1 lets them run where there is no GPU, on the CPU: a test that fails so is wrong
itself.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from bench.profile import profile_step, table
from mmfast import doctor
from mmfast.cli.app import app
from mmfast.config import dump
from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.job.opening import Job
from mmfast.job.runtime import start
from mmfast.models.scorer import Scorer
from mmfast.train import Run, train
from mmfast.training.checkpoint import Checkpointer, complete
from mmfast.training.objective import objective_of
from tests.engines.test_local_labels import plain_logp
from tests.make.eval_cases import write_pope
from tests.make.local_cases import answered, model_folder, picture, question, request, twin
from tests.make.run_results import curve, untimed, weights
from tests.make.tiny_run import make_config, write_pairs

pytestmark = pytest.mark.gpu("rehearsed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NAMES = ("loss", "grad_norm", "rewards/margins")
only_there = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device: there is nothing to rehearse")


def go(folder, tiny, **changes):
    """A run, which must have used the GPU; its curve."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    train(make_config(folder, *tiny, **changes))
    assert not ON_GPU or torch.cuda.max_memory_allocated() > 2**20
    return curve(folder / "run", *NAMES)


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    return go(tmp_path_factory.mktemp("plain"), tiny, **{"train.steps": 3})


# numbers


@pytest.mark.parametrize("dtype,near", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_run_starts_at_ln2_and_learns(tiny, tmp_path, capfd, dtype, near):
    rows = go(tmp_path, tiny, **{"train.steps": 8, "model.dtype": dtype})
    assert rows[0][0] == pytest.approx(math.log(2), abs=near) and rows[-1][0] < 0.6
    assert "step 0: loss 0.69" in capfd.readouterr().err


def test_ten_steps_follow_the_frozen_curve_of_the_cpu(tiny, tmp_path):
    """Ten steps of AdamW stretch rounding: the gradient of a weight that is nearly zero sets the sign of its step."""
    changes = {"train.steps": 10, "objective.gamma": 2.0, "objective.beta": 0.3, "train.shuffle": "groups"}
    frozen = json.loads((Path(__file__).parent / "frozen_curve.json").read_text())
    for found, wanted in zip(go(tmp_path, tiny, **changes), frozen, strict=True):
        assert found == pytest.approx(wanted, rel=5e-4, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel.activation_checkpointing": True},
        {"model.cache_vision": True},
        {"data.workers": 2},
        {"train.tokens_per_pack": 3000},
        pytest.param({"parallel.offload": True}, marks=only_there),
    ],
    ids=lambda c: next(iter(c)),
)
def test_same_numbers(tiny, tmp_path, plain, changes):
    """To rounding: a GPU's matrix products round by how many rows they have, a CPU's hardly do."""
    for found, wanted in zip(go(tmp_path, tiny, **{"train.steps": 3} | changes), plain, strict=True):
        assert found == pytest.approx(wanted, rel=2e-4, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dtype": "bfloat16", "parallel.compile": True},
        {"model.dtype": "bfloat16", "optim.master": "bf16-stochastic"},
        {"optim.name": "adamw8bit"},
        pytest.param({"model.dtype": "bfloat16", "parallel.offload": True}, marks=only_there),
    ],
    ids=lambda c: "-".join(str(v) for v in c.values()),
)
def test_nearly_the_same_numbers(tiny, tmp_path, plain, changes, request):
    if "parallel.compile" not in changes:
        request.getfixturevalue("eager")  # torchao compiles its step: long, for so small a model
    found = go(tmp_path, tiny, **{"train.steps": 3} | changes)
    assert found[0][0] == pytest.approx(plain[0][0], abs=0.02) and found[0][1] == pytest.approx(plain[0][1], rel=0.1)
    assert found[1][0] == pytest.approx(plain[1][0], abs=0.1)


@pytest.mark.parametrize("quantize", ["", pytest.param("nf4", marks=only_there)])
def test_an_adapter_trains_and_answers(tiny, tmp_path, quantize):
    if quantize:
        pytest.importorskip("bitsandbytes")
    changes = {"model.lora": {"r": 4, "alpha": 8.0}, "model.dtype": "bfloat16", "optim.lr": 1e-2, "train.steps": 8}
    changes |= {"model.freeze": ["vision", "projector"], "model.quantize": quantize, "export.formats": ["peft"]}
    rows = go(tmp_path, tiny, **changes)
    assert rows[0][0] == pytest.approx(math.log(2), abs=2e-2) and rows[-1][0] < 0.6
    exported = tmp_path / "run" / "export" / "peft"
    asked = [request_of(n, 12) for n in range(3)]
    with_it, without = (Local(str(tiny[0]), adapter=a, device=DEVICE) for a in (str(exported), ""))
    assert answered(with_it, asked) != answered(without, asked)


# checkpoints


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_by_a_signal_and_gone_on_with(tiny, tmp_path, dtype):
    """In fp32 to the bit. In bf16 a flash attention's backward pass adds to a query's gradient in whatever order its
    blocks end (it can be told otherwise, at a price): two runs are alike to rounding, stopped or not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = {"train.steps": 6, "log.every": 2, "train.checkpoint_every": 0, "model.dtype": dtype}
    train(make_config(tmp_path, *tiny, **changes, output_dir=str(whole)))
    config = make_config(tmp_path, *tiny, **changes, output_dir=str(cut))
    runtime = start(config)
    run = Run(Job(config, runtime), objective_of(config))
    step = run._update

    def stop_in_step_3(planned):
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(planned)

    run._update = stop_in_step_3
    run.loop()
    runtime.close()
    assert run.stopped and run.scorer.device.type == DEVICE
    stopped = complete(cut / "checkpoints")
    assert len(stopped) == 1 and stopped[0].name in ("step-3", "step-4")
    train(config)
    a, b = (complete(folder / "checkpoints")[-1] for folder in (cut, whole))
    assert a.name == b.name == "step-6"
    if dtype == "float32":
        assert untimed(cut) == untimed(whole)
        assert all(file.read_bytes() == (b / file.name).read_bytes() for file in sorted(a.glob("*.distcp")))
    for found, wanted in zip(curve(cut, *NAMES), curve(whole, *NAMES), strict=True):
        assert found == pytest.approx(wanted, rel=0.05, abs=0.02)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_what_is_written_is_of_its_step_although_training_goes_on(tiny, tmp_path, monkeypatch, name, eager):
    """The copy of the weights is made through pinned memory; its file is written while later steps change them."""
    seen, late, save, write = {}, [], Checkpointer.save, Checkpointer._write

    def noted(self, step, state, info, *, wait=False):
        seen[step] = {key: value.clone() for key, value in state["weights"].items()}
        save(self, step, state, info, wait=wait)
        pinned = {buffer.is_pinned() for buffer in self.staging.buffers.values()}
        assert pinned == {ON_GPU} or (ON_GPU and name == "adamw8bit")

    def slow(self, step, state, info):
        time.sleep(0.5)
        late.append((step, run.step))
        write(self, step, state, info)

    monkeypatch.setattr(Checkpointer, "save", noted)
    monkeypatch.setattr(Checkpointer, "_write", slow)
    changes = {"train.steps": 40, "train.checkpoint_every": 20, "train.keep_last": 9, "optim.name": name}
    config = make_config(tmp_path, *tiny, **changes)
    runtime = start(config)
    run = Run(Job(config, runtime), objective_of(config))
    run.loop()
    runtime.close()
    assert [step for step, _ in late] == [20, 40] and late[0][1] > 20, "training did not go on"
    for path in complete(tmp_path / "run" / "checkpoints"):
        wanted = seen[int(path.name[5:])]
        state = {"weights": {key: torch.empty_like(value) for key, value in wanted.items()}}
        Checkpointer(path.parent).load(path, state)
        assert all(torch.equal(state["weights"][key], wanted[key]) for key in wanted)
    first, last = seen[20], seen[40]
    assert any(not torch.equal(first[key], last[key]) for key in first)


# evaluation and answers


def request_of(number: int, tokens: int, family: str = "llava"):
    shown = () if family == "llama" else (picture(number // 2),)
    return request(f"{number}", question(random.Random(number)), *shown, decode=Decode(max_tokens=tokens))


def test_evaluated_sampled_and_exported(tiny, tmp_path):
    held_out, pope = write_pairs(tmp_path, 6, name="eval.jsonl", split="test"), write_pope(tmp_path / "pope", 2)[0]
    changes = {
        "data.eval_path": str(held_out),
        "train.steps": 2,
        "train.eval_every": 1,
        "train.eval_samples": 2,
        "train.eval_tokens": 4,
        "evaluate.bench": ["pope"],
        "evaluate.data": str(pope),
        "evaluate.limit": 4,
        "export.formats": ["hf"],
    }
    go(tmp_path, tiny, **changes)
    (one, _), (two, _) = curve(tmp_path / "run", "eval/loss", "eval/rewards/margins")
    assert one != two and all(math.isfinite(x) for x in (one, two))
    assert (tmp_path / "run" / "eval" / "step-2" / "pope" / "answers.jsonl").exists()
    assert any("sample" in path.name for path in (tmp_path / "run").iterdir())
    exported = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "export" / "hf").named_parameters())
    trained = weights(tmp_path)
    assert trained and all(torch.equal(t.cpu(), exported[name.removeprefix("model.")]) for name, t in trained.items())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_greedy_answers_are_generates(tmp_path, family):
    engine = Local(str(model_folder(tmp_path, family)), device=DEVICE)
    assert isinstance(engine.scorer, Scorer) and engine.scorer.device.type == DEVICE
    asked = [request_of(n, 12 + 6 * n, family) for n in range(6)]
    found = answered(engine, asked)
    for one in asked:
        tokens, logp, _ = found[one.key, 0]
        assert tokens == twin(engine, one)
        if engine.prompts.image_id not in tokens:
            assert abs(logp - plain_logp(engine, one, tokens)) < 5e-5 * len(tokens)


def test_commands_generate_and_evaluate(tiny, tmp_path):
    """`mmfast generate` by either engine, in fp32: the same answers; `mmfast eval` of the same model."""
    rows, pope = write_pairs(tmp_path, 6), write_pope(tmp_path / "pope", 2)[0]
    answers = {}
    for engine in ("local", "plain"):
        out = tmp_path / engine
        command = ["generate", rows, "--out", out, "--engine", engine, "--model", tiny[0], "--max-tokens", 12]
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exit_code == 0, (done.output, done.exception)
        lines = [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]
        answers[engine] = {line["prompt_id"]: line["answer"] for line in lines if "answer" in line}
    assert len(answers["local"]) == 6 and answers["local"] == answers["plain"]
    command = ["eval", tiny[0], "--bench", "pope", "--data", pope, "--out", tmp_path / "eval", "--limit", 4]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, (done.output, done.exception)
    assert list((tmp_path / "eval").rglob("answers.jsonl"))


# the machine


def test_torchrun_of_one_process(tiny, tmp_path):
    """nccl on a GPU, in bf16, with workers: the way in which a run is started."""
    config = make_config(tmp_path, *tiny, **{"model.dtype": "bfloat16", "train.steps": 3, "data.workers": 1})
    (tmp_path / "c.toml").write_text(dump(config))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "mmfast.train"]
    done = subprocess.run([sys.executable, *command, tmp_path / "c.toml"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "finished.json").exists() and len(curve(tmp_path / "run", "loss")) == 3


def test_doctor_finds_nothing_wrong(monkeypatch):
    monkeypatch.setitem(os.environ, "MMFAST_BACKEND", "")
    found = doctor.examine()
    assert not [problem for problem in found.problems if " fails: " in problem or "away from its oracle" in problem]
    assert any(line.startswith(f"{DEVICE}:") for line in found.devices)
    assert "used" in found.attention.values()
    doctor.show(found)


def test_a_profile_has_the_devices_times(tiny, tmp_path):
    recorded, trace = profile_step(make_config(tmp_path, *tiny), tmp_path / "out")
    assert trace.exists()
    sums = table(recorded).splitlines()[-1].split()
    milliseconds = float(sums[-4]), float(sums[-3])
    assert milliseconds[0] > 0 and (milliseconds[1] > 0) == ON_GPU
