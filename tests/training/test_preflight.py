"""What a run is refused for before anything expensive, and options whose effect needs data or a model to show."""

import json
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mmfast import config as schema
from mmfast.cli.app import app
from mmfast.config import build, dump, load
from mmfast.job.opening import Job, Model
from mmfast.job.passes import Pass
from mmfast.job.runtime import Runtime
from mmfast.models import lora as models
from mmfast.packing import PackLoader
from mmfast.packing.plan import check_sizes
from mmfast.train import Run, train
from mmfast.training import forecast as planning
from mmfast.training import metrics
from mmfast.training.forecast import plan, setting_of, sketch
from mmfast.training.preflight import check_length
from mmfast.training.recipes import FOLDER, names
from tests.make.tiny_run import make_config, make_model, write_pairs

ALONE = Runtime(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test: what is refused must be refused before."""

    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("mmfast.job.opening.Job.open_model", loaded)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.cache_vision": True},
        {"model.max_pixels": 1000},
        {"model.min_pixels": 1000},
        {"model.freeze": ["vision", "projector"]},
        {"data.aspect": "pad"},
        {"optim.projector_lr": 1e-5},
        {"optim.vision_lr": 1e-5, "model.freeze": []},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_text_model_refuses_what_needs_images(changes, tmp_path, no_model):
    key = next(iter(changes))
    config = make_config(tmp_path, make_model(tmp_path, "llama"), write_pairs(tmp_path, 4, text_only=4), **changes)
    with pytest.raises(ValueError, match=rf"{key}.* has no effect: .*llama reads text alone"):
        train(config)


def test_a_warm_up_longer_than_the_epochs_is_refused_before_the_model_loads(tiny, tmp_path, no_model):
    tree = make_config(tmp_path, *tiny, **{"optim.warmup": 50}, **{"train.steps": 60}).model_dump(exclude_none=True)
    del tree["train"]["steps"]
    config = build(tree | {"train": tree["train"] | {"epochs": 2.0}})
    with pytest.raises(ValueError, match=r"optim.warmup = 50 steps is more than the run's 12 \(24 examples"):
        train(config)


def test_an_example_above_the_pack_is_refused_before_the_model_loads(tiny, tmp_path, no_model):
    with pytest.raises(ValueError, match=r"example train\d+ \(.*pairs.jsonl:\d+\) needs \d+ tokens, but train.tokens"):
        train(make_config(tmp_path, *tiny, **{"train.tokens_per_pack": 60}))


def test_a_model_that_is_not_there_is_one_line_with_its_key(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "no" / "where"):
        with pytest.raises(ValueError, match=path.name):
            train(make_config(tmp_path, path, tiny[1]))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_spans_given_in_the_data_must_be_there(gamma, tiny, tmp_path, no_model):
    """DDPO on rows without a span would be plain DPO under another name."""
    changes = {"objective.segments": "record", "objective.gamma": gamma}
    told = "objective.gamma = 5" if gamma == 5 else 'objective.segments = "record"'
    with pytest.raises(ValueError, match=f"{told} has no effect: no example holds .*rows need `segments`"):
        train(make_config(tmp_path, *tiny, **changes))
    rows = [json.loads(line) for line in write_pairs(tmp_path, 4).read_text().splitlines()]
    rows[-1]["segments"] = {"rejected": [[0, 5] if gamma == 5 else [0, 5, 2.0]]}
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AssertionError, match="the model was loaded"):
        train(make_config(tmp_path, tiny[0], tmp_path / "given.jsonl", **changes))


def test_the_tokens_told_before_loading_are_the_plans_own(tiny, tmp_path):
    config = make_config(tmp_path, *tiny)
    job = Job(config, ALONE)
    whole = Pass(job, job.store, Model(sketch(job), dict))
    for number in range(len(job.store)):
        one = job.store.symbols.cut([number])
        tokens = int(whole.plan.forest(np.asarray([number]))[1].sum())
        check_sizes(one, tokens, share=True)
        with pytest.raises(ValueError, match=f"needs {tokens} tokens"):
            check_sizes(one, tokens - 1, share=True)


def long_row(data):
    """The last row of a file, its answers three times as long."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for side in ("chosen", "rejected"):
        rows[-1][side][0]["content"] = " ".join([rows[-1][side][0]["content"]] * 3)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.mark.parametrize("command", ["train", "plan"])
def test_aot_is_refused_by_name_before_step_1_when_a_later_step_is_not_whole(command, tiny, tmp_path):
    data = long_row(write_pairs(tmp_path, 16))
    changes = {"objective.loss": "aot", "train.steps": 4, "train.shuffle": "none"}
    config = make_config(tmp_path, tiny[0], data, **changes, **{"train.tokens_per_pack": 9000})
    job = Job(config, ALONE)
    made = Pass(job, job.store, Model(sketch(job), dict)).plan
    sizes = [int(made.step(0, k).tokens.sum()) for k in range(4)]
    assert sizes[3] > max(sizes[:3])
    config = make_config(tmp_path, tiny[0], data, **changes, **{"train.tokens_per_pack": max(sizes[:3])})
    with pytest.raises(ValueError, match=rf"step 3 of epoch 0 has {sizes[3]} tokens, above train.tokens_per_pack"):
        train(config) if command == "train" else plan(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_aot_takes_its_steps_and_its_evaluation_whole(tiny, tmp_path):
    held_out = write_pairs(tmp_path, 10, name="eval.jsonl", split="eval")
    changes = {"objective.loss": "aot", "train.steps": 2, "data.eval_path": str(held_out)}
    last = train(make_config(tmp_path, *tiny, **changes, **{"train.tokens_per_pack": 1500}))
    assert last["eval/loss"] > 0
    small = make_config(tmp_path, *tiny, **changes, **{"train.tokens_per_pack": 450, "output_dir": str(tmp_path / "b")})
    with pytest.raises(ValueError, match=r"data.eval_path: aot sorts over the whole set, whose \d+ tokens"):
        train(small)


def test_aot_on_two_ranks_is_refused(tiny, tmp_path):
    config = make_config(tmp_path, *tiny, **{"objective.loss": "aot", "train.tokens_per_pack": 4000})
    with pytest.raises(ValueError, match="one rank must hold, and there are 2"):
        check_length(Job(config, ALONE), world=2)
    with pytest.raises(ValueError, match="there are 4"):
        plan(config, ranks=4)


def test_the_advice_on_memory_never_hides_what_happened(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(*_, **__):
        raise KeyError("no plan")

    monkeypatch.setattr(Run, "_update", full)
    monkeypatch.setattr(planning, "plan_of", broken)
    with pytest.raises(
        RuntimeError, match=r"out of memory: CUDA out of memory\nWhat would help, .*tokens_per_pack = 200"
    ):
        train(make_config(tmp_path, *tiny))


def test_workers_build_the_packs_of_a_few_examples(tiny, tmp_path, monkeypatch):
    workers = []

    class Watched(PackLoader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            workers.append(self.workers)

    monkeypatch.setattr("mmfast.job.passes.PackLoader", Watched)
    job = Job(make_config(tmp_path, *tiny, **{"data.workers": 2}), ALONE)
    packs = list(Pass(job, job.store, job.policy).run())
    assert len(job.store) == 24 == sum(len(loaded.pack.pairs) for loaded in packs) and workers == [2]


def test_a_missing_eval_file_is_named_as_such(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"data.eval_path: .*nowhere.jsonl does not exist"):
        train(make_config(tmp_path, *tiny, **{"data.eval_path": str(tmp_path / "nowhere.jsonl")}))


# LoRA's settings


def test_an_adapter_and_targets_that_cannot_be_are_refused_before_the_model_loads(tiny, tmp_path, no_model):
    def refused(told, **changes):
        with pytest.raises(ValueError, match=told):
            train(make_config(tmp_path, *tiny, **changes))

    refused("model.lora.targets: no linear layer 'qq_proj'; this model has", **{"model.lora.targets": "q_proj,qq_proj"})
    refused('model.adapter: .*nowhere" is no folder here', **{"model.adapter": str(tmp_path / "nowhere")})
    file = tmp_path / "adapter_config.json"
    save_file({}, tmp_path / "adapter_model.safetensors")
    for more, told in (
        ({"peft_type": "IA3"}, "is .*IA3; only plain LoRA"),
        ({"peft_type": "LORA", "use_dora": True}, "is DoRA"),
        ({"peft_type": "LORA", "modules_to_save": ["mm"]}, "replaces mm as a whole"),
    ):
        file.write_text(json.dumps({"target_modules": ["q_proj"], **more}))
        refused(f"model.adapter: .*{told}", **{"model.adapter": str(tmp_path)})


def test_one_translation_of_lora_settings_with_the_same_defaults():
    assert models.Lora.of(load("", [])) is None
    given = load("", ["model.lora.targets=q_proj, v_proj", "model.lora.r=8"])
    assert models.Lora.of(given) == models.Lora(r=8, alpha=128, dropout=0.0, targets="q_proj, v_proj")
    ours, theirs = schema.Lora(), models.Lora()
    assert (ours.r, ours.alpha, ours.dropout, ours.targets) == (theirs.r, theirs.alpha, theirs.dropout, theirs.targets)


def trained(scorer):
    return {name: tuple(p.shape) for name, p in scorer.named_parameters() if p.requires_grad}


def test_the_plan_sees_the_layers_that_the_run_trains(tiny, tmp_path):
    """Targets joined by commas, and an initial adapter's own layers and ranks."""
    adapter = tmp_path / "adapter"
    settings = {"r": 4, "alpha": 8.0, "targets": "q_proj,v_proj"}
    fresh = make_config(tmp_path, *tiny, **{"model.lora": settings})
    scorer, _ = Job(fresh, ALONE).policy
    assert trained(scorer) == trained(sketch(Job(fresh, ALONE)))
    assert sum(".q_proj." in name for name in trained(scorer)) and not any(".k_proj." in n for n in trained(scorer))
    scorer.peft[0].save_pretrained(str(adapter))
    saved = json.loads((adapter / "adapter_config.json").read_text())
    assert saved["r"] == 4 and saved["target_modules"]
    again = make_config(tmp_path, *tiny, **{"model.adapter": str(adapter)})
    scorer, _ = Job(again, ALONE).policy
    assert trained(scorer) == trained(sketch(Job(again, ALONE))) == trained(sketch(Job(fresh, ALONE)))
    assert plan(again).memory.optimiser == plan(fresh).memory.optimiser


def test_an_initial_adapter_alone_can_be_exported_as_peft(tiny, tmp_path):
    changes = {"model.freeze": ["vision", "projector"], "train.steps": 1, "export.formats": ["peft"]}
    fresh = make_config(tmp_path, *tiny, **changes, **{"model.lora.r": 4})
    scorer, _ = Job(fresh, ALONE).policy
    scorer.peft[0].save_pretrained(str(tmp_path / "adapter"))
    train(make_config(tmp_path, *tiny, **changes, **{"model.adapter": str(tmp_path / "adapter")}))
    made, given = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path / "run" / "export" / "peft", tmp_path / "adapter")
    )
    assert made["r"] == given["r"] == 4 and made["target_modules"] == sorted(given["target_modules"])


# the plan

FAMILIES = {
    "llava-hf/llava-1.5": "llava",
    "Qwen/Qwen2.5-VL": "qwen2_5_vl",
    "Qwen/Qwen3-VL": "qwen3_vl",
    "models/Qwen-VL-Chat": "qwen",
}


@pytest.fixture(scope="module")
def tiny_families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {family: make_model(folder, family) for family in FAMILIES.values()}, write_pairs(folder, 6)


@pytest.mark.parametrize("name", names())
def test_every_recipes_own_model_can_be_planned(name, tiny_families, tmp_path):
    """Each recipe's [model] as it is, on a tiny model of its family."""
    made, data = tiny_families
    recipe = load(FOLDER / f"{name}.toml")
    family = next((FAMILIES[f] for f in FAMILIES if recipe.model.path.startswith(f)), "llava")
    tree = {
        "model": recipe.model.model_dump(exclude_none=True) | {"path": str(made[family])},
        "data": {"path": str(data), "cache": str(tmp_path), "workers": 0},
        "optim": recipe.optim.model_dump(exclude_none=True) | {"warmup": 0.0},
        "parallel": recipe.parallel.model_dump(),
        "objective": recipe.objective.model_dump(exclude_none=True),
        "log": {"progress": False},
    }
    config = build(tree)
    assert config.model.model_dump(exclude={"path"}) == recipe.model.model_dump(exclude={"path"})
    report = plan(config, ranks=8, device="cuda")
    assert report.memory.total > 0 and report.examples == 6


def test_hybrid_shards_over_a_node_in_the_plan_too(tiny, tmp_path):
    config = make_config(tmp_path, *tiny, **{"parallel.shard": "hybrid"})
    job = Job(config, ALONE)
    scorer = sketch(job)

    def shards(ranks, node):
        return setting_of(job, scorer, ranks, node, "cuda", 1).shards

    assert (shards(64, 8), shards(64, 4), shards(4, 8)) == (8, 4, 4)
    with pytest.raises(ValueError, match="12 ranks are no whole nodes of 8: give --gpus-per-node"):
        shards(12, 8)
    wide, node = plan(config, ranks=64), plan(config, ranks=8)
    assert wide.memory.optimiser == node.memory.optimiser  # it does not shrink with more nodes


def test_a_base_in_4_bits_is_planned_in_4_bits(tiny, tmp_path):
    changes = {"model.lora.r": 4, "model.dtype": "bfloat16"}
    whole = make_config(tmp_path, *tiny, **changes)
    packed = make_config(tmp_path, *tiny, **changes, **{"model.quantize": "nf4"})
    scorer = sketch(Job(whole, ALONE))
    linear = sum(
        p.numel() for x in scorer.adapter.layers(scorer.model) for n, p in x.named_parameters() if "base_layer" in n
    )
    a, b = (plan(config, device="cuda").memory for config in (whole, packed))
    layers = len(scorer.adapter.layers(scorer.model))
    expected = linear * (2 - 0.5625) + 2 * (linear // layers) * 2  # its blocks are not gathered either
    assert a.weights - b.weights == pytest.approx(expected, abs=8) and a.optimiser == b.optimiser


# the command line


def test_the_command_takes_dashed_overrides_and_refuses_an_idle_option(tiny, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(dump(make_config(tmp_path, *tiny)))
    runner = CliRunner()
    for overrides, low, high in (([], 300, 400), (["--train.tokens_per_pack=300"], 0, 300)):
        done = runner.invoke(app, ["plan", str(file), *overrides, "--json"])
        assert done.exit_code == 0, done.output
        assert low < json.loads(done.stdout)["largest_pack"] <= high
    for given, told in (
        (["--lr=1e-5"], "here it is optim.lr"),
        (["--gpus-per-node", "4"], "--gpus-per-node has no effect"),
        (["--rnaks=3"], "unknown key rnaks"),
    ):
        with pytest.raises(ValueError, match=told):
            runner.invoke(app, ["plan", str(file), *given], catch_exceptions=False)


def test_a_tracker_without_a_login_is_told_before_the_run(monkeypatch):
    def broken(**_):
        raise RuntimeError("cannot reach the server\nand more")

    answers = {"no login here": lambda **_: False, "": lambda **_: True, "cannot reach the server": broken}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for told, login in answers.items():
        monkeypatch.setattr(
            metrics.importlib, "import_module", lambda _, login=login: types.SimpleNamespace(login=login)
        )
        if told:
            with pytest.raises(ValueError, match=f"log.trackers: wandb: {told}: run `wandb login`"):
                metrics.check_trackers(["wandb"])
        else:
            metrics.check_trackers(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    metrics.check_trackers(["wandb"])
