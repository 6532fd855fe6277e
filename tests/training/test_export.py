"""Every export of a run loads equal to the run, or is refused before the model loads."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.config import load as config_load
from mmfast.job.opening import Job
from mmfast.job.rows import read
from mmfast.job.runtime import start
from mmfast.models.attention import attention
from mmfast.models.export import live_weights, rewrite_weights
from mmfast.models.loading import load
from mmfast.models.lora import Lora
from mmfast.models.merge import merge, trial_rows
from mmfast.models.names import disk_names
from mmfast.train import Run, train
from mmfast.training.checkpoint import trainable
from mmfast.training.export import check_export, export, export_run
from mmfast.training.objective import objective_of
from mmfast.world.models import FAMILIES
from tests.make.tiny_run import make_config, make_model, write_pairs

ROOT = Path(__file__).parents[2]
LORA = {"model.lora": {"r": 4, "alpha": 8.0}}


def run(folder, tiny, **changes):
    config = make_config(folder, *tiny, **{"train.steps": 3, "optim.lr": 1e-2} | changes)
    runtime = start(config)
    made = Run(Job(config, runtime), objective_of(config))
    made.loop()
    runtime.close()
    return made


def logits(model):
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def pixels_logits(model):
    """With an image, so that the projector counts."""
    config = model.config
    ids = torch.cat([torch.arange(5, 9), torch.full((36,), config.image_token_id), torch.arange(9, 30)])[None]
    image = torch.rand(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=image).logits


def test_hf_of_a_full_run_loads_equal(tiny, tmp_path):
    made = run(tmp_path, tiny, **{"export.formats": ["hf"]})
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "export" / "hf")
    ours = dict(made.scorer.model.named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p, ours[name]), name
    base = AutoModelForImageTextToText.from_pretrained(tiny[0])
    assert not torch.equal(logits(model), logits(base))
    card = (tmp_path / "run" / "export" / "hf" / "README.md").read_text()
    assert str(tiny[0]) in card and "rewards/margins" in card and made.job.store.digest in card
    assert (tmp_path / "run" / "export" / "hf" / "tokenizer.json").exists()


def test_lora_merged_peft_and_native_agree(tiny, tmp_path):
    made = run(tmp_path, tiny, **LORA, **{"export.formats": ["hf", "peft", "llava"], "export.merge": True})
    folder = tmp_path / "run" / "export"
    names = trainable(made.scorer)
    assert any("lora_B" in n for n in names) and any("projector" in n for n in names)
    whole = AutoModelForImageTextToText.from_pretrained(folder / "hf")
    with_adapter = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny[0]), folder / "peft")
    assert torch.allclose(pixels_logits(whole), pixels_logits(with_adapter), atol=2e-4)
    base = AutoModelForImageTextToText.from_pretrained(tiny[0])
    assert (pixels_logits(base) - pixels_logits(whole)).abs().max() > 1e-2
    native = folder / "llava-lora"
    adapter = load_file(native / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in adapter
    others = torch.load(native / "non_lora_trainables.bin", weights_only=True)
    assert set(others) == {f"base_model.model.model.mm_projector.{i}.{w}" for i in (0, 2) for w in ("weight", "bias")}
    assert json.loads((native / "config.json").read_text())["mm_projector_type"] == "mlp2x_gelu"

    assert merge(folder / "peft", tmp_path / "merged") < 1e-3
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert torch.allclose(pixels_logits(whole), pixels_logits(again), atol=1e-5)
    other = make_model(tmp_path / "other", layers=1)
    with pytest.raises(ValueError, match="is it the adapter's base"):
        merge(folder / "peft", tmp_path / "no", str(other))
    with pytest.raises(ValueError, match="not a peft adapter"):
        merge(tiny[0], tmp_path / "no")


def test_export_of_a_checkpoint(tiny, tmp_path):
    made = run(tmp_path, tiny)
    writing = tmp_path / "run" / "checkpoints" / ".tmp-step-4" / "shard"  # of a run that is still going
    writing.parent.mkdir()
    writing.write_text("half")
    folder = export(tmp_path / "run", ("hf",))
    assert folder == tmp_path / "run" / "export" / "step-3" and writing.exists()
    model = AutoModelForImageTextToText.from_pretrained(folder / "hf")
    ours = dict(made.scorer.model.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="no complete checkpoint of step 7; there are those of 3"):
        export(tmp_path / "run", ("hf",), step=7)
    assert config_load(tmp_path / "run" / "config.toml") == made.config


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llama"])
def test_every_stored_tensor_finds_its_parameter(family, tmp_path):
    names = disk_names(make_model(tmp_path, family))
    assert len(set(names.values())) == len(names)


def card_of(folder):
    """(weights by file, metrics by name: value and step) as a model card says them."""
    rows = [line.strip("| ").split(" | ") for line in (folder / "README.md").read_text().split("\n") if "|" in line]
    weights = {row[0]: row[1].strip("`") for row in rows if len(row) == 2 and row[1].startswith("`")}
    return weights, {row[0]: row[1:] for row in rows if len(row) == 3 and row[2].isdecimal()}


def test_a_card_names_the_step_its_weights_and_the_metrics_of_that_step(tiny, tmp_path):
    """And exporting an older step leaves what the run exported at its end as it is."""
    changes = {"train.checkpoint_every": 1, "train.keep_last": 9, "export.formats": ["hf"]}
    made = run(tmp_path, tiny, **changes)
    folder = tmp_path / "run"
    before = {path: path.read_bytes() for path in (folder / "export").rglob("*") if path.is_file()}
    older = export(folder, (), step=2)
    assert older == folder / "export" / "step-2"
    assert all(path.read_bytes() == data for path, data in before.items())
    rows = {row["step"]: row for row in read(folder / "metrics.jsonl")}
    found = []
    for step, made_folder in ((3, folder / "export" / "hf"), (2, older / "hf")):
        text = (made_folder / "README.md").read_text()
        assert f"# run, step {step}" in text and made.job.store.digest in text
        weights, metrics = card_of(made_folder)
        data = (made_folder / "model.safetensors").read_bytes()
        assert weights == {"model.safetensors": hashlib.sha256(data).hexdigest()}
        assert metrics["loss"] == [f"{rows[step]['loss']:.5g}", str(step)]
        assert metrics["logps/chosen"] == [f"{rows[step]['logps/chosen']:.5g}", str(step)]
        found.append(weights)
    assert found[0] != found[1]


def test_an_adapter_run_exports_whole_weights_only_merged(tiny, tmp_path):
    run(tmp_path, tiny, **LORA, **{"train.steps": 1})
    folder, call = tmp_path / "run", CliRunner().invoke
    told = call(app, ["export", str(folder), "--format", "hf"])
    assert isinstance(told.exception, ValueError) and '"hf" needs --merge, or take --format peft' in str(told.exception)
    assert not (folder / "export").exists()
    done = call(app, ["export", str(folder), "--merge"])
    assert done.exit_code == 0 and done.stdout.split() == [str(folder / "export" / "step-1" / "hf")]
    whole = AutoModelForImageTextToText.from_pretrained(folder / "export" / "step-1" / "hf")
    done = call(app, ["export", str(folder), "--format", "peft"])
    assert done.exit_code == 0, done.output
    base = AutoModelForImageTextToText.from_pretrained(tiny[0])
    assert torch.allclose(
        pixels_logits(whole),
        pixels_logits(PeftModel.from_pretrained(base, folder / "export" / "step-1" / "peft")),
        atol=2e-4,
    )


def test_merging_a_run_without_an_adapter_is_refused(tiny, tmp_path):
    run(tmp_path, tiny, **{"train.steps": 1})
    with pytest.raises(ValueError, match=r"--merge merges an adapter, and .* trained the whole model"):
        export(tmp_path / "run", merge=True)


def test_an_initial_adapter_alone_is_exported_as_one(tiny, tmp_path):
    """Trained on, without [model.lora]: "hf" unmerged is the adapter, as with [model.lora]."""
    first = tmp_path / "first"
    first.mkdir()
    run(first, tiny, **LORA, **{"train.steps": 1, "model.freeze": ["vision", "projector"], "export.formats": ["peft"]})
    adapter = first / "run" / "export" / "peft"
    changes = {"model.adapter": str(adapter), "model.freeze": ["vision", "projector"], "train.steps": 1}
    run(tmp_path, tiny, **changes, **{"export.formats": ["hf", "peft"]})
    folder = tmp_path / "run" / "export"
    assert [path.name for path in folder.iterdir()] == ["peft"]
    one, two = (
        pixels_logits(PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny[0]), path))
        for path in (adapter, folder / "peft")
    )
    assert (one - two).abs().max() > 1e-3


# every family, every way


def forward(model, family):
    """Logits of words, and of words around a picture."""
    return [model(**row, use_cache=False).logits.detach() for row in trial_rows(family)]


def equal(some, others, tolerance):
    return len(some) == len(others) and all(
        torch.allclose(a, b, atol=tolerance) for a, b in zip(some, others, strict=True)
    )


WAYS = [
    (lora, freeze, formats, whole)
    for lora, freezes, exports in (
        (None, (["vision"], [], ["language"]), ((["hf"], False),)),
        (LORA, (["vision"], ["vision", "projector"]), ((["hf"], True), (["peft"], False), (["llava"], False))),
    )
    for freeze in freezes
    for formats, whole in exports
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_out_loads_equal_or_is_refused_before_the_model_loads(family, tmp_path, monkeypatch):
    path = make_model(tmp_path, family)
    data = write_pairs(tmp_path, 2, text_only=2)
    refused = set()
    for number, (lora, freeze, formats, whole) in enumerate(WAYS):
        if family == "llama" and not lora and "language" in freeze:
            continue  # nothing left to train
        folder = tmp_path / str(number)
        folder.mkdir()
        given = {**(lora or {}), "model.freeze": freeze, "export.formats": formats, "export.merge": whole}
        config = make_config(folder, path, data, **given)
        runtime = start(config)
        try:
            job = Job(config, runtime)
            job.folder = folder
            check_export(job)
        except ValueError as error:
            assert "export" in str(error)
            refused.add((bool(lora), tuple(freeze), formats[0]))
            with monkeypatch.context() as patched:
                patched.setattr("mmfast.train.Run", lambda *_: pytest.fail("it came to loading"))
                with pytest.raises(ValueError, match="export"):
                    train(config)
            continue
        options = {"r": 4, "alpha": 8} if lora else None
        scorer = load(str(path), dtype="float32", freeze=freeze, lora=Lora(**options) if options else None)
        torch.manual_seed(number)
        for p in scorer.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn_like(p)
        export_run(job, scorer, 1, "digest")
        runtime.close()
        if formats == ["llava"]:
            continue
        kinds = AutoModelForCausalLM if family == "llama" else AutoModelForImageTextToText
        with attention(scorer.decoder.config, scorer.own_attention):
            expected = forward(scorer.model.eval(), path)
        out = folder / "export" / formats[0]
        if formats == ["peft"]:
            found = PeftModel.from_pretrained(kinds.from_pretrained(path, dtype=torch.float32), out)
        else:
            found = kinds.from_pretrained(out, dtype=torch.float32)
        assert len(expected) == (1 if family == "llama" else 2)
        assert equal(forward(found.eval(), path), expected, 1e-5 if not lora else 1e-3), (family, given)
        plain = forward(kinds.from_pretrained(path, dtype=torch.float32).eval(), path)
        assert not equal(plain, expected, 1e-2)
    expected = set()
    if family != "llava":
        expected |= {(True, ("vision",), "llava"), (True, ("vision", "projector"), "llava")}
    if family in ("llava_next", "qwen", "beit3_llava"):  # each has a projector that is no module
        expected.add((True, ("vision",), "peft"))
    assert refused == expected


def test_llava_next_with_lora_and_the_default_export_is_refused_before_anything_is_written(tmp_path):
    path, data = make_model(tmp_path, "llava_next"), write_pairs(tmp_path, 4)
    with pytest.raises(ValueError, match=r"no place for the trained model.image_newline.*export\.merge = true"):
        train(make_config(tmp_path, path, data, **LORA, **{"export.formats": ["hf"]}))
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_an_empty_model_path_is_said_first(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"^model\.path is empty"):
        train(make_config(tmp_path, *tiny, **{"model.path": ""}))


def test_cached_vision_exports_the_whole_model(tiny, tmp_path):
    run(tmp_path, tiny, **{"train.steps": 1, "model.cache_vision": True, "export.formats": ["hf"]})
    whole = load_file(tmp_path / "run" / "export" / "hf" / "model.safetensors")
    base = load_file(tiny[0] / "model.safetensors")
    assert whole.keys() == base.keys()
    assert all(torch.equal(whole[k], base[k]) for k in base if "vision_tower" in k)
    again = load_file(export(tmp_path / "run", ("hf",)) / "hf" / "model.safetensors")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_the_ranks_that_do_not_write_read_no_weights(tiny, tmp_path):
    scorer = load(str(tiny[0]), dtype="float32", freeze=("vision",))
    read_by_others = []

    def replace(name, base):
        read_by_others.append(base)
        return live(name, base)

    live = live_weights(scorer)
    rewrite_weights(tiny[0], tmp_path, replace, write=False)
    assert read_by_others and not any(base is not None for base in read_by_others)
    assert not list(tmp_path.iterdir())


def test_the_migration_page_names_a_merged_export_that_its_recipe_takes():
    page = (ROOT / "docs" / "migration.md").read_text()
    overrides = ['export.formats=["hf"]', "export.merge=true"]
    assert all(f"`{text}`" in page for text in overrides)
    assert config_load(ROOT / "recipes" / "mllm_dpo.toml", overrides).export.merge
