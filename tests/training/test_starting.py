"""mmfast init: the config that it prints loads as it stands and is filled in from data, model and memory."""

import json

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.config import load
from mmfast.packages import tomllib
from mmfast.train import train
from mmfast.training import starting
from mmfast.training.forecast import plan
from mmfast.training.starting import starting_config


def test_the_printed_file_loads_and_plans_as_it_stands(tiny, tmp_path, monkeypatch):
    model, data = tiny
    done = CliRunner().invoke(app, ["init", str(data), "--model", str(model)], catch_exceptions=False)
    file = tmp_path / "my.toml"
    file.write_text(done.stdout)
    assert 10 <= len(done.stdout.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    config = load(file, ["train.steps=2"])
    report = plan(config)
    assert config.data.format == "trl" and config.objective.kind == "dpo" and config.model.lora is None
    assert report.examples == len(data.read_text().splitlines())
    assert f"the longest of {report.examples} examples" in done.stdout
    longest = int(done.stdout.partition("examples has ")[2].split()[0])
    assert longest <= config.data.max_length < longest + 64
    train(load(file, ["train.steps=1", "data.workers=0", "parallel.threads=1", "log.progress=false"]))
    assert (tmp_path / config.output_dir / "export" / "hf" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="max_length"):
        plan(load(file, [f"data.max_length={longest - 1}", "train.steps=2"]))


def test_memory_decides_on_lora_and_packs(tiny, monkeypatch):
    """Between what LoRA and what all weights need; below both it says that it is too much."""
    model, data = tiny
    little = starting_config(str(data), str(model), memory_gib=1e-4)  # the real plan
    assert "lora" in tomllib.loads(little)["model"] and "TOO MUCH" in little
    most = tomllib.loads(starting_config(str(data), str(model), memory_gib=1000))
    assert "lora" not in most["model"] and most["train"]["tokens_per_pack"] == 16384

    def needs(size_of_all, size_of_lora):
        def plan_of(job, **_):
            total = (size_of_lora if job.lora else size_of_all) * 2**30 + job.steps.tokens_per_pack * 2**17
            return type("Plan", (), {"memory": type("Memory", (), {"total": total})})

        return plan_of

    for all_weights, lora, expected in ((5, 1, (True, 16384)), (1, 1, (False, 16384)), (100, 7.5, (True, 8192))):
        monkeypatch.setattr(starting, "plan_of", needs(all_weights, lora))
        text = starting_config(str(data), str(model), memory_gib=10 if all_weights != 5 else 5)
        found = tomllib.loads(text)
        assert ("lora" in found["model"], found["train"]["tokens_per_pack"]) == expected
        assert "TOO MUCH" not in text and (found["optim"]["lr"] == 1e-5) == expected[0]
    monkeypatch.setattr(starting, "plan_of", needs(100, 100))
    assert "TOO MUCH" in starting_config(str(data), str(model), memory_gib=10)


def test_a_step_is_a_part_of_an_epoch_and_no_larger_than_the_data():
    assert [starting.some(n) for n in (1, 7, 8, 24, 200, 256, 2047, 2048, 10**6)] == [1, 7, 8, 8, 8, 16, 64, 128, 128]


def test_bad_rows_are_left_out_and_counted_and_sides_decide_the_objective(tiny, tmp_path):
    model, data = tiny
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["images"] = [str(data.parent / name) for name in row["images"]]
    rows[0]["images"] = ["nowhere.png"]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = starting_config(str(file), str(model))
    assert tomllib.loads(text)["data"]["on_error"] == "drop" and "# 1 rows cannot be used" in text
    for row in rows:
        del row["rejected"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    text = starting_config(str(file), str(model))
    assert tomllib.loads(text)["objective"]["kind"] == "sft" and "on_error" not in text
    with pytest.raises(ValueError, match=r"nothing\.jsonl"):
        starting_config(str(tmp_path / "nothing.jsonl"), str(model))
