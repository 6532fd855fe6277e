"""`mmfast import`: a published directory becomes one that mmfast reads, tensor for tensor; what cannot is one line, and
nothing is written; stopped, it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.images.processor import ImageProcessor
from mmfast.directory import directory, weight_files
from mmfast.families import config_of
from mmfast.job.rows import read
from mmfast.models import importing, load
from mmfast.models.importing import import_model
from mmfast.models.merge import merge
from mmfast.models.names import disk_names
from mmfast.train import train
from tests.make.hub_server import NAME, hub
from tests.make.qwen_files import publish, tiny
from tests.make.tiny_run import make_config, write_pairs


@pytest.fixture
def source(tmp_path):
    return publish(tmp_path / "hub" / "Qwen-VL-Chat")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in weight_files(folder) for name, t in load_file(file).items()}


def untouched(folder: Path) -> bool:
    """Nothing new beside the source's parent."""
    return [path.name for path in folder.iterdir()] == ["hub"]


def test_weights_keep_their_names_and_values(source, tmp_path):
    done = CliRunner().invoke(app, ["import", str(source), str(tmp_path / "out")])
    assert done.exit_code == 0 and "out: imported" in done.output.replace("\n", "")
    want = tiny().state_dict()
    found = tensors(tmp_path / "out")
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
    assert len(weight_files(tmp_path / "out")) == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["hub", "out"]
    names = disk_names(tmp_path / "out")
    assert all(key == name for key, name in names.items()) and names.keys() == want.keys()
    assert (tmp_path / "out" / "LICENSE").exists() and not list((tmp_path / "out").glob("*.py"))
    assert not (tmp_path / "out" / "import.json").exists()


def test_what_it_makes_is_read_without_the_code_in_the_directory(source, tmp_path):
    out = import_model(source, tmp_path / "out")
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    config = config_of(out)
    assert tokenizer.convert_ids_to_tokens(config.image_token_id) == "<imgpad>" and not hasattr(config, "auto_map")
    taste = hf.GenerationConfig.from_pretrained(out)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
    assert taste.eos_token_id == ends and taste.top_p == 0.3
    assert ImageProcessor.from_model_dir(out) == ImageProcessor.from_model_dir(source)
    picture = torch.zeros(50, 70, 3, dtype=torch.uint8).numpy()
    theirs = hf.CLIPImageProcessorPil.from_pretrained(out)(picture, return_tensors="np")["pixel_values"]
    assert (ImageProcessor.from_model_dir(out).preprocess(picture)["pixel_values"] == theirs[0]).all()
    model, report = hf.AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model) is type(hf.AutoModelForCausalLM.from_pretrained(out))
    assert not list(tmp_path.rglob("it-ran"))


def test_a_hub_id_is_fetched_without_its_code(source, tmp_path):
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with hub(source) as (environment, asked):
        given = own | environment | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "mmfast.cli", "import", NAME, str(tmp_path / "out")]
        subprocess.run(command, env=given, check=True, capture_output=True)
    assert not [line for line in asked if ".py" in line] and len([x for x in asked if x.endswith(".bin")]) >= 2
    want = tiny().state_dict()
    assert all(torch.equal(t, want[name]) for name, t in tensors(tmp_path / "out").items())


def test_it_is_trained_with_dgprefs_lora_and_goes_back(source, tmp_path):
    """Adapter, merged model, and the merged model's keys: what the original code loads."""
    base = import_model(source, tmp_path / "base")
    lora = {"r": 4, "alpha": 8.0, "targets": "c_attn,attn.c_proj,w1,w2"}
    given = {"model.freeze": ["vision", "projector"], "model.lora": lora, "model.cache_vision": True}
    given |= {"train.steps": 2, "optim.lr": 1e-2, "export.formats": ["peft"], "data.template": "dgpref_qwen"}
    train(make_config(tmp_path, base, write_pairs(tmp_path, 4), **given))
    rows = [row for row in read(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert abs(rows[0]["loss"] - 0.6931) < 1e-3 and rows[1]["loss"] != rows[0]["loss"] and rows[0]["sharing"] > 0.3
    adapter = tmp_path / "run" / "export" / "peft"
    placed = {name.split(".lora_")[0].rsplit(".", 2)[-1] for name in load_file(adapter / "adapter_model.safetensors")}
    assert placed == {"c_attn", "c_proj", "w1", "w2"}
    merge(adapter, tmp_path / "merged")
    merged, plain = tensors(tmp_path / "merged"), tensors(base)
    assert {name: t.shape for name, t in merged.items()} == {name: t.shape for name, t in plain.items()}
    changed = {name.rsplit(".", 2)[-2] for name in merged if not torch.equal(merged[name], plain[name])}
    assert changed == {"c_attn", "c_proj", "w1", "w2"}
    assert not [n for n in merged if not torch.equal(merged[n], plain[n]) and ("mlp.c_proj" in n or "visual" in n)]
    ours = json.loads((tmp_path / "merged" / "config.json").read_text())
    original = json.loads((source / "config.json").read_text())
    assert {key: ours.get(key) for key in original if key != "auto_map"} | {
        "auto_map": original["auto_map"]
    } == original
    assert (tmp_path / "merged" / "qwen.tiktoken").read_bytes() == (source / "qwen.tiktoken").read_bytes()
    again = import_model(tmp_path / "merged", tmp_path / "again")
    assert all(torch.equal(t, merged[name]) for name, t in tensors(again).items())


def test_half_precision_stays_what_it_was(tmp_path):
    out = import_model(publish(tmp_path / "hub", dtype=torch.bfloat16, parts=1), tmp_path / "out")
    assert {t.dtype for t in tensors(out).values()} == {torch.bfloat16}
    assert {p.dtype for p in load(str(out), dtype="float32").parameters()} == {torch.float32}


def test_a_large_file_is_written_as_several_and_the_order_of_files_does_not_matter(source, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "SHARD", 100_000)
    out = import_model(source, tmp_path / "out")
    files = weight_files(out)
    assert len(files) > 8 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(len(load_file(f)) == 1 or f.stat().st_size < 110_000 for f in files)
    want = tiny().state_dict()
    assert all(torch.equal(t, want[name]) for name, t in tensors(out).items())


def test_any_other_model_with_pickled_weights(tmp_path):
    """No family's file need know of it; a tensor that the model has no place for is told."""
    from mmfast.world.models import tiny_model

    base = tiny_model("llama", tmp_path / "base")
    (tmp_path / "hub").mkdir()
    for file in base.glob("*.json"):
        shutil.copy(file, tmp_path / "hub")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(load_file(base / "model.safetensors") | extra, tmp_path / "hub" / "pytorch_model.bin")
    told = []
    out = import_model(tmp_path / "hub", tmp_path / "out", told.append)
    assert told == [
        "left out: 1 tensors that the model has no place for, model.layers.0.self_attn.rotary_emb.inv_freq the first"
    ]
    want = tensors(base)
    assert tensors(out).keys() == want.keys() and all(torch.equal(t, want[n]) for n, t in tensors(out).items())
    with pytest.raises(ValueError, match="`mmfast import` and save_pretrained"):
        directory(tmp_path / "hub", weights=True)


# a user's mistakes


class Code:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def broken(folder: Path, what: str) -> str:
    """Breaks the directory; returns what is told."""
    part = folder / "pytorch_model-00002-of-00002.bin"
    held = torch.load(part, weights_only=True) if part.exists() else {}
    if what == "missing":
        part.unlink()
        return (
            r"is not whole: pytorch_model-00002-of-00002.bin, which its pytorch_model.bin.index.json names, is missing"
        )
    if what == "truncated":
        part.write_bytes(part.read_bytes()[:-1000])
        return r"00002-of-00002.bin is damaged or cut short .*: fetch it again"
    if what == "empty":
        part.write_bytes(b"")
        return r"00002-of-00002.bin is damaged or cut short .*: fetch it again"
    if what == "code":
        torch.save({**held, "lm_head.weight": Code()}, part)
        return r"00002-of-00002.bin holds more than tensors, and what runs code is not read"
    if what == "nested":
        torch.save({"state_dict": held}, part)
        return r"00002-of-00002.bin is no dictionary of tensors"
    if what == "another part":
        torch.save(torch.load(folder / "pytorch_model-00001-of-00002.bin", weights_only=True), part)
        return r"00002-of-00002.bin holds transformer\..*, which the index does not say: is it a part of this model\?"
    if what == "short part":
        held.pop("lm_head.weight")
        torch.save(held, part)
        return r"00002-of-00002.bin does not hold lm_head.weight, which the index says: fetch it again"
    if what == "another model":
        torch.save(held | {"lm_head.weight": torch.zeros(600, 128)}, part)
        return r"lm_head.weight has the shape \[600, 128\], and by config.json \[520, 128\]: these are another model's"
    if what == "fewer layers":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        return r"transformer.h.2.*.weight is in none of the files of .* such\): these are another model's weights"
    if what == "vocabulary":
        (folder / "qwen.tiktoken").unlink()
        return r"has no qwen.tiktoken, which holds its vocabulary"
    if what == "other vocabulary":
        config = json.loads((folder / "config.json").read_text())
        config["visual"]["image_start_id"] = 400
        (folder / "config.json").write_text(json.dumps(config))
        return r"qwen.tiktoken is of another model: its <img> is 514, config.json says 400"
    if what == "quantised":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
        return r"is quantised: import the model that it was made of"
    if what == "text alone":
        config = json.loads((folder / "config.json").read_text())
        config.pop("visual")
        (folder / "config.json").write_text(json.dumps(config))
        return r"reads text alone \(Qwen-7B\)"
    if what == "cut config":
        (folder / "config.json").write_text((folder / "config.json").read_text()[:-9])
        return r"config.json is no JSON \(.*\): fetch it again"
    if what == "unknown":
        (folder / "config.json").write_text('{"model_type": "llama_of_mine"}')
        return r"model_type 'llama_of_mine' is known neither to mmfast nor to transformers"
    if what == "no weights":
        for file in folder.glob("pytorch_model*"):
            file.unlink()
        return r"has no weights: neither model.safetensors nor pytorch_model.bin"
    assert what == "no config", what
    (folder / "config.json").unlink()
    return r"has no config.json: name the folder \(or hub id\) of a whole model"


MISTAKES = (
    "missing", "truncated", "empty", "code", "nested", "another part", "short part", "another model", "fewer layers",
    "cut config", "unknown", "vocabulary", "other vocabulary", "quantised", "text alone", "no weights", "no config",
)  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(what, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "hub")
    told = broken(source, what)
    with pytest.raises(ValueError, match=told) as error:
        import_model(source, tmp_path / "out")
    assert "\n" not in str(error.value) and untouched(tmp_path) and not (tmp_path / "hub" / "it-ran").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: usage(0, 0, 60 << 20))
    with pytest.raises(ValueError, match=r"too small: 0\.1 GiB are to be written there, 0\.1 are free"):
        import_model(source, tmp_path / "out")
    assert untouched(tmp_path)


def test_the_target_must_be_new(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for target, told in ((tmp_path / "out", "is there already"), (source / "in", "lies in"), (source, "already")):
        with pytest.raises(ValueError, match=told):
            import_model(source, target)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(ValueError, match="is there already"):
        import_model("someone/large", tmp_path / "out")  # before anything is fetched
    (tmp_path / "out" / "mine").unlink()
    assert import_model(source, tmp_path / "out") == tmp_path / "out", "an empty folder is taken"


def stopped(source: Path, out: Path, monkeypatch) -> Path:
    """An import that dies while it writes its second file; where that lies."""
    save, written = importing.save_file, []

    def dies(tensors, path, **more):
        if written:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        save(tensors, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(importing, "save_file", dies)
        with pytest.raises(KeyboardInterrupt):
            import_model(source, out)
    assert not out.exists()
    (unfinished,) = [path for path in out.parent.iterdir() if path.name.startswith(".out")]
    return unfinished


def test_stopped_it_goes_on_behind_its_last_file(source, tmp_path, monkeypatch):
    unfinished = stopped(source, tmp_path / "out", monkeypatch)
    first = unfinished / "model-00001-of-00002.safetensors"
    before = first.stat().st_mtime_ns
    out = import_model(source, tmp_path / "out")
    assert (out / first.name).stat().st_mtime_ns == before and not unfinished.exists()
    want = tiny().state_dict()
    assert all(torch.equal(t, want[name]) for name, t in tensors(out).items())
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []


def test_stopped_and_started_with_other_weights_it_begins_anew(source, tmp_path, monkeypatch):
    stopped(source, tmp_path / "out", monkeypatch)
    shutil.rmtree(source)
    other = tiny(seed=1)
    publish(source, other)
    out = import_model(source, tmp_path / "out")
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in tensors(out).items())
