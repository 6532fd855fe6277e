"""The loop: it learns, its numbers do not depend on packing, it stops and goes on, and its mistakes are told."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from mmfast.job.opening import Job
from mmfast.job.rows import read
from mmfast.job.runtime import start
from mmfast.reference.cache import ReferenceCache
from mmfast.reference.exchange import export_file, import_file
from mmfast.reference.scoring import reference
from mmfast.train import Run, train
from mmfast.training import checkpoint
from mmfast.training.objective import objective_of
from tests.make.run_results import curve, untimed
from tests.make.tiny_run import make_config, make_model, write_pairs


def test_dpo_starts_at_ln2_and_learns(tiny, tmp_path, capfd):
    config = make_config(tmp_path, *tiny, **{"train.steps": 8})
    last = train(config)
    losses = [x for (x,) in curve(tmp_path / "run", "loss")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7) and losses[-1] < 0.6
    first = read(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["rewards/margins"] == 0.0  # exactly: the same packs through the same kernels
    assert last["loss"] == losses[-1] and 0 < last["sharing"] < 1 and last["rewards/accuracies"] > 0.5
    run = tmp_path / "run"
    assert (run / "report.html").exists() and (run / "config.toml").exists()
    assert json.loads((run / "checkpoints" / "step-8" / "state.json").read_text())["step"] == 8
    assert "step 0: loss 0.693147, at zero margin 0.693147" in capfd.readouterr().err


def test_packing_changes_nothing(tiny, tmp_path):
    curves = []
    for name, budget in (("a", 400), ("b", 2000)):
        changes = {"output_dir": str(tmp_path / name), "train.tokens_per_pack": budget, "objective.gamma": 2.0}
        train(make_config(tmp_path, *tiny, **changes))
        curves.append(curve(tmp_path / name, "loss", "grad_norm", "rewards/margins", "logps/chosen"))
    for other in curves[1:]:
        for a, b in zip(curves[0], other, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


def test_sft_on_the_chosen_side(tiny, tmp_path):
    changes = {"objective.kind": "sft", "train.steps": 12, "train.pairs_per_step": 12, "optim.lr": 3e-3}
    train(make_config(tmp_path, *tiny, **changes))
    losses = [x for (x,) in curve(tmp_path / "run", "loss")]
    assert losses[-1] < losses[0] - 1.0
    for loss, nll in curve(tmp_path / "run", "loss", "nll"):
        assert loss == pytest.approx(nll, rel=1e-6)


def test_asked_to_stop_then_resumed_to_the_bit(tiny, tmp_path):
    """SIGTERM in the middle: a checkpoint and a clean end; then the same numbers as an undisturbed run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = {"train.steps": 6, "log.every": 2, "train.checkpoint_every": 0, "objective.gamma": 3.0}
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
    before = signal.getsignal(signal.SIGTERM)
    run.loop()
    runtime.close()
    assert signal.getsignal(signal.SIGTERM) == before
    assert [p.name for p in checkpoint.complete(cut / "checkpoints")] == ["step-3"]
    train(config)
    assert untimed(cut) == untimed(whole)
    a, b = (checkpoint.complete(folder / "checkpoints")[-1] for folder in (cut, whole))
    assert a.name == b.name == "step-6"
    for file in sorted(a.glob("*.distcp")):
        assert file.read_bytes() == (b / file.name).read_bytes()


def test_what_changed_is_named_when_resuming(tiny, tmp_path):
    config = make_config(tmp_path, *tiny, **{"train.steps": 2})
    train(config)
    other = write_pairs(tmp_path, 20, name="other.jsonl")
    for changes, told in (
        ({"data.path": str(other)}, 'data.path: its examples were "'),
        ({"seed": 5}, "seed was 0 and is 5"),
        ({"train.steps": 1}, "train.steps asks for 1 steps in all, and step 2 is reached"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume.*{told}"):
            train(make_config(tmp_path, *tiny, **{"train.steps": 2} | changes))


def test_a_wrong_cache_is_found_before_training(tiny, tmp_path):
    config = make_config(tmp_path, *tiny, **{"train.steps": 1, "reference.path": str(tmp_path / "ref")})
    reference(config)
    cache = ReferenceCache(tmp_path / "ref")
    for shard in (tmp_path / "ref").glob("shard-*"):
        shard.unlink()
    cache.add({key: value + 0.5 for key, value in cache.values.items()})  # as other weights would have scored
    with pytest.raises(ValueError, match="does not fit this model"):
        train(config)
    with pytest.raises(ValueError, match=r"was made otherwise: .*template is"):
        train(make_config(tmp_path, *tiny, **{"reference.path": str(tmp_path / "ref"), "data.template": "vicuna_v1"}))
    other = make_model(tmp_path, seed=1)
    with pytest.raises(ValueError, match="was made otherwise: weights: "):
        train(make_config(tmp_path, other, tiny[1], **{"reference.path": str(tmp_path / "ref")}))


def test_reference_log_probs_leave_and_come_back(tiny, tmp_path, capfd):
    """Exported in mllm-dpo's fields, read back by a run whose cache is empty: trusted only after re-scoring."""
    rows = [json.loads(line) for line in tiny[1].read_text().splitlines()]
    source = tmp_path / "pairs.json"
    source.write_text(json.dumps(rows))
    changes = {"train.steps": 1, "data.images": str(tiny[1].parent), "data.format": "trl"}
    config = make_config(tmp_path, tiny[0], source, **changes)
    with pytest.raises(ValueError, match="48 responses are not in"):
        export_file(config, tmp_path / "out.json")
    reference(config)
    assert export_file(config, tmp_path / "out.json") == 24
    other = make_config(tmp_path, tiny[0], source, **changes | {"data.cache": str(tmp_path / "other")})
    assert import_file(other, tmp_path / "out.json") == 48
    train(other)
    assert "8 cached rows scored again, off by" in capfd.readouterr().err
    broken = json.loads((tmp_path / "out.json").read_text())
    for row in broken:
        row["ref_win_per_token_logp"][-1] -= 1.0
        row["ref_win_logp"] -= 1.0
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    third = make_config(tmp_path, tiny[0], source, **changes | {"data.cache": str(tmp_path / "third")})
    import_file(third, tmp_path / "broken.json")
    with pytest.raises(ValueError, match="does not fit this model"):
        train(
            make_config(
                tmp_path, tiny[0], source, **changes | {"data.cache": str(tmp_path / "third"), "train.resume": "never"}
            )
        )


def test_a_non_finite_step_is_skipped_told_and_stops_the_run(tiny, tmp_path, capfd):
    config = make_config(tmp_path, *tiny, **{"train.steps": 6, "train.nonfinite_limit": 2, "log.every": 3})
    runtime = start(config)
    run = Run(Job(config, runtime), objective_of(config))
    objective, calls = run.objective, []
    before = {}

    def poisoned(logps, pack):
        calls.append(pack)
        loss, sums = objective(logps, pack)
        return (loss * float("nan") if run.step + 1 in (2, 5, 6) else loss), sums

    poisoned.reads_reference = False
    run.objective = poisoned
    step = run._update

    def watched(planned):
        number = run.step
        before[number] = [p.detach().clone() for p in run.named.values()]
        step(planned)
        moved = any(not torch.equal(a, b) for a, b in zip(before[number], run.named.values(), strict=True))
        assert moved == (number not in (2, 5, 6))

    run._update = watched
    with pytest.raises(RuntimeError, match="2 steps in a row turned non-finite"):
        run.loop()
    runtime.close()
    told = capfd.readouterr().err
    assert "step 2 turned non-finite and was skipped; its samples: train" in told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_samples_and_the_best_checkpoint(tiny, tmp_path, dtype):
    held_out = write_pairs(tmp_path, 8, name="eval.jsonl", split="test")
    changes = {
        "model.dtype": dtype,
        "data.eval_path": str(held_out),
        "train.eval_every": 2,
        "train.eval_samples": 2,
        "train.eval_tokens": 5,
        "train.best_metric": "eval/rewards/accuracies",
        "train.keep_last": 1,
        "train.checkpoint_every": 0,
    }
    last = train(make_config(tmp_path, *tiny, **changes))
    rows = [row for row in read(tmp_path / "run" / "metrics.jsonl") if "eval/loss" in row]
    assert [row["step"] for row in rows] == [2, 4] and last["eval/loss"] == rows[-1]["eval/loss"]
    samples = read(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in samples] == [0, 0, 2, 2, 4, 4]
    assert samples[0]["images"] and "picture" in samples[0]["prompt"] and "<image>" not in samples[0]["prompt"]
    assert samples[0]["chosen"].endswith(". 0") and samples[0]["rejected"].endswith(" no 0")
    best = checkpoint.best_checkpoint(tmp_path / "run" / "checkpoints", "eval/rewards/accuracies")
    top = max(row["eval/rewards/accuracies"] for row in rows)
    assert checkpoint.read_info(best)["metrics"]["eval/rewards/accuracies"] == top
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()


def test_adapter_off_is_the_cached_reference(tiny, tmp_path):
    """With a trained projector too: its starting values are put back for the reference."""
    curves = []
    for kind in ("cached", "adapter-off"):
        changes = {"model.lora": {"r": 4, "alpha": 8.0}, "reference.kind": kind, "optim.lr": 1e-2}
        train(make_config(tmp_path, *tiny, **changes, output_dir=str(tmp_path / kind)))
        curves.append(curve(tmp_path / kind, "loss", "rewards/margins", "grad_norm"))
    for a, b in zip(*curves, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


def test_out_of_memory_tells_the_plan(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Run, "_update", full)
    with pytest.raises(
        RuntimeError, match=r"expects of a rank, in GiB: .*\n.*tokens_per_pack = 200 .*checkpointing.*shard"
    ):
        train(make_config(tmp_path, *tiny))


FROZEN = "tests/train/frozen_curve.json"


def test_the_frozen_curve(tiny, tmp_path):
    """Ten steps of DDPO in fp32: any change of these numbers is a change of the maths (rounding differs by machine)."""
    changes = {"train.steps": 10, "objective.gamma": 2.0, "objective.beta": 0.3, "train.shuffle": "groups"}
    train(make_config(tmp_path, *tiny, **changes))
    found = curve(tmp_path / "run", "loss", "grad_norm", "rewards/margins")
    path = Path(FROZEN)
    if os.environ.get("MMFAST_FREEZE"):
        path.write_text(json.dumps(found, indent=1))
    for a, b in zip(found, json.loads(path.read_text()), strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": ""}, "data.path is empty"),
        ({"model.path": ""}, "model.path is empty"),
        ({"train.tokens_per_pack": 60}, "needs .* tokens, but train.tokens_per_pack = 60"),
        ({"objective.loss": "exo_pair"}, "exo_pair.*objective.label_smoothing"),
        ({"objective.loss": "aot", "train.tokens_per_pack": 300}, "one pack"),
        ({"output_dir": "/dev/null/run"}, "output_dir: cannot write"),
        ({"model.quantize": "nf4", "model.lora": {"r": 4}}, "needs a GPU"),
        ({"parallel.offload": True}, "no GPU is here"),
        ({"train.resume": "/nowhere"}, "not a complete checkpoint"),
    ],
)
def test_mistakes_are_told_before_training(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(make_config(tmp_path, *tiny, **changes))
