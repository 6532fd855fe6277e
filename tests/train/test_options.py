"""Options that a run accepts take effect: a few steps with each, and what must differ or agree."""

import math

import pytest

from mmfast.job.opening import Job
from mmfast.job.rows import read
from mmfast.job.runtime import start
from mmfast.reference.cache import ReferenceCache
from mmfast.train import Run, train
from mmfast.training import checkpoint
from mmfast.training.objective import objective_of
from tests.make.run_results import curve
from tests.make.tiny_run import make_config, make_model, write_pairs

STEPS = 3  # the first update of an 8-bit AdamW is the plain one, and may be so to the bit


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train(make_config(folder, *tiny, **{"train.steps": STEPS}))
    return curve(folder / "run", "loss", "grad_norm", "rewards/margins")


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel.activation_checkpointing": True},
        {"model.cache_vision": True},
        {"data.workers": 2},
        {"train.tokens_per_pack": 3000},
    ],
    ids=lambda c: next(iter(c)),
)
def test_same_numbers(tiny, tmp_path, plain, changes):
    train(make_config(tmp_path, *tiny, **{"train.steps": STEPS} | changes))
    for a, b in zip(curve(tmp_path / "run", "loss", "grad_norm", "rewards/margins"), plain, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "optim.master": "bf16-stochastic"},
        {"optim.name": "adamw8bit"},
    ],
    ids=lambda c: "-".join(str(v) for v in c.values()),
)
def test_nearly_the_same_numbers(tiny, tmp_path, plain, changes, eager):
    train(make_config(tmp_path, *tiny, **{"train.steps": STEPS} | changes))
    found = curve(tmp_path / "run", "loss", "grad_norm")
    assert found[0][0] == pytest.approx(plain[0][0], abs=0.02) and found[0][1] == pytest.approx(plain[0][1], rel=0.1)
    assert found[1][0] == pytest.approx(plain[1][0], abs=0.1) and found != [row[:2] for row in plain]
    state = checkpoint.complete(tmp_path / "run" / "checkpoints")[-1]
    config = make_config(tmp_path, *tiny, **{"train.steps": STEPS, "train.resume": str(state)} | changes)
    runtime = start(config)
    resumed = Run(Job(config, runtime), objective_of(config))  # reads it back: nothing is left to do
    runtime.close()
    assert resumed.step == STEPS


def test_learning_rates_of_parts(tiny, tmp_path):
    changes = {
        "train.steps": 1,
        "model.freeze": [],
        "optim.lr": 1e-3,
        "optim.projector_lr": 1e-4,
        "optim.vision_lr": 1e-5,
    }
    config = make_config(tmp_path, *tiny, **changes)
    runtime = start(config)
    run = Run(Job(config, runtime), objective_of(config))
    before = {name: p.detach().clone() for name, p in run.named.items()}
    run.loop()
    runtime.close()
    moved = {name: float((p - before[name]).abs().max()) for name, p in run.named.items()}
    for part, rate in (("multi_modal_projector", 1e-4), ("vision_tower", 1e-5), ("language_model", 1e-3)):
        found = [x for name, x in moved.items() if part in name]
        assert found and max(found) == pytest.approx(rate, rel=0.02)  # Adam's first step is the rate itself


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl", "llama"])
def test_families(family, tmp_path):
    data = write_pairs(tmp_path, 6, text_only=6 if family == "llama" else 2)
    config = make_config(
        tmp_path, make_model(tmp_path, family), data, **{"train.steps": 2, "train.tokens_per_pack": 2000}
    )
    train(config)
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert abs(rows[0]["rewards/margins"]) < 1e-5 and abs(rows[1]["rewards/margins"]) > 1e-3


@pytest.mark.parametrize(
    "objective",
    [
        {"loss": "simpo"},
        {"loss": "orpo"},
        {"loss": "sigmoid", "terms": [{"loss": "bco_pair", "weight": 0.5}, {"loss": "sft", "weight": 0.1}]},
        {
            "loss": "sigmoid",
            "sft_weight": 0.1,
            "sft_average": True,
            "gamma": 5.0,
            "segments": "compat",
        },
        {"loss": "sigmoid", "divergence": "alpha_divergence", "alpha": 0.5, "ld_alpha": 0.5},
        {"loss": "sigmoid", "average": True, "sft_weight": 0.1},
        {"loss": "aot"},
        {"compat": "dgpref"},
        {"compat": "sima"},
    ],
    ids=lambda o: o.get("compat") or o["loss"],
)
def test_objectives(tiny, tmp_path, objective):
    free = objective.get("loss") in ("simpo", "orpo")
    changes = {f"objective.{k}": v for k, v in objective.items()} | {"reference.kind": "none" if free else "cached"}
    changes |= {"train.steps": 2, "train.tokens_per_pack": 4000}
    train(make_config(tmp_path, *tiny, **changes))
    losses = [x for (x,) in curve(tmp_path / "run", "loss")]
    assert losses[0] != losses[1] and all(abs(x) < 1e3 for x in losses)


def test_dgprefs_reference_is_swapped(tiny, tmp_path):
    """Summed policy against averaged reference: the first margin is beta * (S_c - S_r - (mean_c - mean_r))."""
    changes = {"train.steps": 1, "objective.compat": "dgpref", "train.pairs_per_step": 1, "train.shuffle": "none"}
    config = make_config(tmp_path, *tiny, **changes)
    runtime = start(config)
    run = Run(Job(config, runtime), objective_of(config))
    (pack,) = [loaded.pack for loaded in run.training.run(0, 1)]
    run.loop()
    runtime.close()
    (row,) = read(tmp_path / "run" / "metrics.jsonl")
    sides = [pack.ref_logps[a:b] for a, b in zip(pack.responses, pack.responses[1:], strict=False)]
    chosen, rejected = (sides[i] for i in pack.pairs[0].tolist())
    margin = 0.1 * float((chosen.sum() - chosen.mean()) - (rejected.sum() - rejected.mean()))
    assert row["rewards/margins"] == pytest.approx(margin, rel=1e-4)


def test_simas_released_loss_takes_no_row_of_a_dpo_cache(tiny, tmp_path):
    """The runner-up's log-probs have keys of their own: a cache made for DPO lends its chosen sides alone."""
    place = {"train.steps": 1, "reference.path": str(tmp_path / "ref")}
    train(make_config(tmp_path / "dpo", *tiny, **place))
    before = ReferenceCache(tmp_path / "ref").values
    train(make_config(tmp_path / "sima", *tiny, **place, **{"objective.compat": "sima", "objective.beta": 0.2}))
    after = ReferenceCache(tmp_path / "ref").values
    assert len(after) == 1.5 * len(before)
    names = ("loss", "logps/chosen", "logps/rejected")
    ((dpo,), (sima,)) = (curve(tmp_path / kind / "run", *names) for kind in ("dpo", "sima"))
    assert dpo[1] == sima[1] and sima[2] > dpo[2] + 10  # likeliest tokens, not those of the answer
    assert sima[0] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference still


def test_simas_released_loss_beside_the_adapter_off_is_the_cached_ones(tiny, tmp_path):
    lora = {"model.lora": {"r": 4, "alpha": 8.0}, "objective.compat": "sima", "train.steps": STEPS}
    for kind in ("cached", "adapter-off"):
        train(make_config(tmp_path / kind, *tiny, **lora, **{"reference.kind": kind}))
    one, other = (curve(tmp_path / kind / "run", "loss", "grad_norm") for kind in ("cached", "adapter-off"))
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
