import json
import math

import pytest

from mmfast.metrics import read
from mmfast.train import train
from tests.train.tiny import make_config

TIMES = ("tokens_per_s", "pairs_per_s", "memory_gib", "data_wait", "mfu")


def curve(folder, *names):
    return [[row[name] for name in names] for row in read(folder / "metrics.jsonl") if names[0] in row]


def untimed(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read(folder / "metrics.jsonl")]


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
