"""The config page is valid, and a mistake in a config is named."""

from pathlib import Path

import pytest

from mmfast import config


def test_the_design_page_is_valid(tmp_path):
    text = """
output_dir = "runs/ddpo"
seed = 3
[model]
path = "llava-hf/llava-1.5-7b-hf"
freeze = ["vision"]
lora = { r = 128, alpha = 256, dropout = 0.0, targets = "language-linear" }
[data]
path = [{ path = "a.jsonl", weight = 2.0 }, { path = "b.jsonl" }]
[objective]
terms = [{ loss = "ipo", weight = 0.5 }]
[optim]
betas = [0.9, 0.95]
[export]
formats = ["hf", "peft"]
merge = true
"""
    file = tmp_path / "c.toml"
    file.write_text(text)
    c = config.load(file, ["train.pairs_per_step=8", "optim.lr=5e-6", "data.images=some/dir", "train.steps=10"])
    assert c.optim.lr == 5e-6 and c.data.images == "some/dir" and c.train.steps == 10 and c.train.epochs is None
    assert c.model.lora.r == 128 and c.data.path[0].weight == 2.0 and c.optim.betas == (0.9, 0.95)
    file.write_text(config.dump(c))
    assert config.load(file) == c


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.pairs_per_stpe=3", "did you mean train.pairs_per_step"),
        ("optim.beta=0.1", "optim.beta"),
        ("lr=0.1", "here it is optim.lr"),
        ("model.lora.rank=4", "unknown key model.lora.rank"),
        ("objective.beta=0", "objective.beta"),
        ("objective.beta=-1", "greater than 0"),
        ("objective.loss=dpo", "not known"),
        ("train.epochs=", "train.epochs"),
        ("reference.kind=adapter-off", "needs \\[model.lora\\]"),
        ("model.quantize=nf4", "needs \\[model.lora\\]"),
        ("reference.kind=none", "needs a reference"),
        ("objective.loss=simpo", 'reference.kind = "none"'),
        ("train.eval_every=5", "data.eval_path"),
        ("export.merge=true", "no \\[model.lora\\]"),
        ("parallel.shard_size=2", "hybrid"),
        ("objective.loss=robust", "label_smoothing"),
        ("train", "section.key=value"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        config.load("", [override])


def test_impossible_together():
    with pytest.raises(ValueError, match="exclude each other"):
        config.load("", ["train.steps=3", "train.epochs=1"])
    with pytest.raises(ValueError, match="gamma"):
        config.load("", ["objective.kind=sft", "objective.gamma=2"])
    with pytest.raises(ValueError, match="does not exist"):
        config.load("nowhere.toml")


def test_a_list_may_have_lost_its_quotes_to_a_shell():
    for given, read in (("[hf]", ["hf"]), ("[ hf, llava ]", ["hf", "llava"]), ('["hf"]', ["hf"])):
        assert config.load("", [f"export.formats={given}"]).export.formats == read
    assert config.load("", ["data.path=[a].jsonl"]).data.path == "[a].jsonl"


def test_default_epochs_and_docs():
    assert config.load("", []).train.epochs == 3
    page = config.reference_page()
    assert Path("docs/config.md").read_text() == page, "write config.reference_page() to docs/config.md"
    for section in ("[model]", "[model.lora]", "[export]"):
        assert f"## {section}" in page
    for name, field in config.Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, config.Section):
            for key, item in annotation.model_fields.items():
                assert item.description, f"{name}.{key} has no docstring"
