"""A second start in a used output_dir: what may change is told and goes on; the rest is refused and touches nothing."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmfast.config import load
from mmfast.job.rows import read
from mmfast.train import train
from mmfast.training.checkpoint import complete
from mmfast.training.resume import RULES, changes, keys
from tests.make.run_results import snapshot, untimed, weights
from tests.make.tiny_run import make_config, make_model


def digest(folder):
    return {name: hashlib.sha256(data).hexdigest() for name, data in snapshot(folder).items()}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("mmfast.train.report", lambda folders: (folders[0] / "report.html").write_text("plots"))


def config_of(folder, tiny, **given):
    few = {"train.steps": 4, "train.checkpoint_every": 2, "train.keep_last": 9, "export.formats": ["hf"]}
    return make_config(folder, *tiny, **few | given)


def start_again(folder, tiny, **given):
    return train(config_of(folder, tiny, **given))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A finished run of 4 steps, to be copied."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.train.report", lambda folders: (folders[0] / "report.html").write_text("plots"))
        train(config_of(folder, tiny))
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def cut_to(folder, step):
    """As if killed right after the checkpoint of `step`."""
    for path in complete(folder / "run" / "checkpoints"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    for name in ("export", "finished.json", "report.html"):
        path = folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_every_key_of_the_schema_has_a_rule():
    assert sorted(keys()) == sorted(RULES)
    assert "model.lora.r" in RULES and "objective.terms" in RULES and "data.path" in RULES


def test_values_that_differ_are_found_whatever_their_form(tiny, tmp_path):
    a = make_config(tmp_path, *tiny).model_dump(mode="json")
    b = make_config(tmp_path, *tiny, **{"model.lora": {"r": 4}, "model.freeze": ["vision", "projector"]})
    b = json.loads(json.dumps(b.model_dump(mode="json")))
    found = {key: (there, here) for key, there, here in changes(a, b)}
    assert found["model.lora.r"] == (None, 4) and found["model.freeze"] == (["vision"], ["projector", "vision"])
    del a["train"]["nonfinite_limit"]  # a checkpoint made before there was such a key: it had the default
    b["train"]["nonfinite_limit"] = 7
    assert ("train.nonfinite_limit", 3, 7) in changes(a, b)
    b["model"]["freeze"] = ["vision"]
    b["model"]["lora"] = None
    assert [key for key, *_ in changes(a, b)] == ["train.nonfinite_limit"]


REFUSED = [
    (
        {"objective.loss": "ipo", "objective.beta": 0.7},
        r'objective.loss was "sigmoid" and is "ipo"; objective.beta was 0.1',
    ),
    ({"objective.average": True}, "objective.average was false and is true"),
    ({"objective.sft_weight": 0.5}, "objective.sft_weight was 0.0 and is 0.5"),
    ({"objective.gamma": 2.0}, "objective.gamma was 1.0 and is 2.0"),
    ({"objective.kind": "sft"}, 'objective.kind was "dpo" and is "sft"'),
    ({"objective.terms": [{"loss": "ipo", "weight": 0.5}]}, "objective.terms was"),
    ({"model.freeze": ["vision", "projector"]}, r'model.freeze was \["vision"\] and is \["projector", "vision"\]'),
    ({"model.lora": {"r": 4, "alpha": 8.0}}, "model.lora.r was not set and is 4"),
    ({"model.dtype": "bfloat16"}, 'model.dtype was "float32" and is "bfloat16"'),
    ({"optim.name": "adamw8bit"}, 'optim.name was "adamw" and is'),
    ({"train.pairs_per_step": 2}, "train.pairs_per_step was 4 and is 2"),
    ({"train.shuffle": "none"}, 'train.shuffle was "groups" and is "none"'),
    ({"train.drop_last": True}, "train.drop_last was false and is true"),
    ({"data.max_words": 60}, r"data.path: its examples were .* \(data.max_words was 0 and is 60\)"),
    ({"data.limit": 20}, r"data.path: its examples were .* \(data.limit was 0 and is 20\)"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_changes_the_meaning_is_refused_by_name_and_nothing_is_touched(copy, tiny, given, told):
    cut_to(copy, 2)
    before = digest(copy / "run")
    with pytest.raises(ValueError, match=rf"^cannot resume from .*step-2: {told}") as error:
        start_again(copy, tiny, **given)
    assert "\n" not in str(error.value)
    assert digest(copy / "run") == before


@pytest.mark.parametrize("kind", ["dpo", "sft", "simpo"])
def test_other_weights_of_the_same_shape_are_refused_whatever_the_objective(tiny, tmp_path, kind):
    """A LoRA adapter would go on over another base: only DPO's reference digest saved it before."""
    changes = {"model.lora": {"r": 4, "alpha": 8.0}, "train.steps": 2, "export.formats": []}
    changes |= {"sft": {"objective.kind": "sft"}, "dpo": {}}.get(
        kind, {"objective.loss": "simpo", "reference.kind": "none"}
    )
    model = make_model(tmp_path / "a")
    train(make_config(tmp_path, model, tiny[1], **changes))
    moved = tmp_path / "b" / "llava"
    shutil.copytree(model, moved)
    train(make_config(tmp_path, moved, tiny[1], **changes | {"train.steps": 3}))  # another place, the same weights
    file = moved / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("mlp.up_proj.weight"))
    tensors[name][0, 0] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r'model.path: its weights were "[0-9a-f]{24}" and are "[0-9a-f]{24}"'):
        train(make_config(tmp_path, moved, tiny[1], **changes | {"train.steps": 4}))


def test_what_may_change_goes_on_and_is_told(copy, tiny, capfd):
    cut_to(copy, 2)
    given = {"optim.lr": 5e-4, "optim.schedule": "constant", "optim.clip": 0.5, "optim.weight_decay": 0.1}
    given |= {"log.every": 2, "train.tokens_per_pack": 300, "parallel.activation_checkpointing": True}
    given |= {"train.steps": 6}
    start_again(copy, tiny, **given)
    told = capfd.readouterr().err
    for line in (
        "optim.lr was 0.001 and is 0.0005",
        "train.tokens_per_pack was 400 and is 300",
        "log.every was 1 and is 2",
    ):
        assert f"\n  {line}\n" in told
    assert "train.steps was 4 and is 6" in told
    rows = read(copy / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4, 6] and rows[-1]["learning_rate"] == 5e-4
    assert load(copy / "run" / "config.toml").optim.lr == 5e-4
    assert load(complete(copy / "run" / "checkpoints")[-1] / "config.toml").optim.lr == 5e-4


def test_a_grown_run_equals_one_that_was_that_long(copy, tiny, tmp_path_factory):
    """At a constant rate: 4 steps, extended to 6, are 6 steps."""
    other = tmp_path_factory.mktemp("long")
    constant = {"optim.schedule": "constant", "data.cache": str(copy / "cache")}
    start_again(other, tiny, **constant, **{"train.steps": 4})
    start_again(other, tiny, **constant, **{"train.steps": 6})
    shutil.rmtree(copy / "run")
    start_again(copy, tiny, **constant, **{"train.steps": 6})
    assert untimed(other / "run") == untimed(copy / "run")
    for name, value in weights(copy).items():
        assert torch.equal(value, weights(other)[name])


def test_epochs_grow_and_shrink_as_far_as_the_step_reached(copy, tiny):
    cut_to(copy, 2)
    with pytest.raises(ValueError, match=r"train.steps asks for 1 steps in all, and step 2 is reached: raise"):
        start_again(copy, tiny, **{"train.steps": 1})
    config = config_of(copy, tiny)
    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": None, "epochs": 0.5})})
    train(config)  # 24 pairs, 4 a step: 6 steps an epoch
    assert [row["step"] for row in read(copy / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_the_same_data_elsewhere_is_the_same(copy, tiny, capfd):
    """Another name of the same file beside the same pictures: not the path counts."""
    cut_to(copy, 2)
    shutil.copy(tiny[1], tiny[1].with_name("again.jsonl"))
    try:
        start_again(copy, (tiny[0], tiny[1].with_name("again.jsonl")))
    finally:
        tiny[1].with_name("again.jsonl").unlink()
    assert "data.path was " in capfd.readouterr().err


def test_a_finished_run_says_so_and_does_nothing(copy, tiny, capfd):
    before = snapshot(copy / "run")
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.job.opening.Job.open_model", lambda *a, **k: opened.append(1))
        last = start_again(copy, tiny)
    assert snapshot(copy / "run") == before and not opened
    assert "finished at step 4; nothing to do" in capfd.readouterr().err
    assert last["loss"] == read(copy / "run" / "metrics.jsonl")[-1]["loss"]
    with pytest.raises(ValueError, match=r"objective\.beta was 0\.1 and is 0\.5"):
        start_again(copy, tiny, **{"objective.beta": 0.5})
    assert snapshot(copy / "run") == before


@pytest.mark.parametrize("left", ["marker", "folder"])
def test_a_finished_run_whose_export_was_killed_still_exports(whole, copy, tiny, left):
    here = {n: data.replace(bytes(whole), bytes(copy)) for n, data in snapshot(copy / "run").items()}
    before = {n: data for n, data in here.items() if n != "started.json" and "checkpoints" not in n}
    shutil.rmtree(copy / "run" / "export" / "hf")
    if left == "folder":  # killed before the marker was written
        (copy / "run" / "finished.json").unlink()
        (copy / "run" / "export" / ".hf.tmp").mkdir()
        (copy / "run" / "export" / ".hf.tmp" / "half").write_text("")
    start_again(copy, tiny)
    after = {n: d for n, d in snapshot(copy / "run").items() if n != "started.json" and "checkpoints" not in n}
    assert after == before  # the card too


def test_other_formats_of_a_finished_run_are_exported_from_its_last_checkpoint(copy, tiny):
    weights_before = (copy / "run" / "export" / "hf" / "model.safetensors").read_bytes()
    shutil.rmtree(copy / "run" / "export")
    start_again(copy, tiny, **{"export.formats": []})
    assert not (copy / "run" / "export").exists()
    start_again(copy, tiny)
    assert (copy / "run" / "export" / "hf" / "model.safetensors").read_bytes() == weights_before


def test_a_finished_run_without_checkpoints_is_not_started_over(copy, tiny):
    shutil.rmtree(copy / "run" / "checkpoints")
    before = snapshot(copy / "run")
    with pytest.raises(ValueError, match=r"is finished, and its checkpoints are gone: train.resume = \"never\""):
        start_again(copy, tiny)
    assert snapshot(copy / "run") == before


def test_a_first_start_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("the policy does not start from the reference")

    monkeypatch.setattr("mmfast.train.check_first_loss", refuse)
    with pytest.raises(ValueError, match="does not start"):
        start_again(tmp_path, tiny)
    assert not (tmp_path / "run").exists()
    with pytest.raises((ValueError, OSError)):
        start_again(tmp_path, ("no-such-model-here", tiny[1]))
    assert not (tmp_path / "run").exists()
    assert os.listdir(tmp_path) == ["cache"]


def test_the_weights_digest_is_remembered_by_size_and_times(tiny, tmp_path, monkeypatch):
    from mmfast import files

    model = make_model(tmp_path)
    first = files.weight_digests(model, tmp_path / "notes")
    read_again = []
    real = files._tensor_digests
    monkeypatch.setattr(files, "_tensor_digests", lambda file: read_again.append(file) or real(file))
    assert files.weight_digests(model, tmp_path / "notes") == first and not read_again
    file = model / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert files.weight_digests(model, tmp_path / "notes") != first and read_again
