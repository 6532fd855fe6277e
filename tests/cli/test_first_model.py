"""docs/first-model.md and README: their commands run as they are written, on a tiny model; their files load."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.config import load
from tests.rounds.test_tutorial import understood

ROOT = Path(__file__).parents[2]
FIRST, README = (ROOT / "docs" / "first-model.md").read_text(), (ROOT / "README.md").read_text()
MODEL = "llava-hf/llava-1.5-7b-hf"  # which is not here: a tiny one answers to its name
SHORT = ["train.steps=2", "train.pairs_per_step=4", "data.workers=0", "log.progress=false", "parallel.threads=1"]
LORA = "model.lora={r=4, alpha=8}"  # `init` takes it where the memory asks for it


def commands(text):
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the pages begin with."""
    from tests.make.eval_cases import write_pope
    from tests.make.tiny_run import make_model, write_pairs

    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "llava-hf").rename(tmp_path / MODEL)
    write_pairs(tmp_path, 12)
    write_pairs(tmp_path, 4, name="held_out.jsonl", split="test")
    write_pope(tmp_path / "pope", 1)
    return tmp_path


def run(words):
    """As the shell would; `train` for two steps, with LoRA."""
    into = words[words.index(">") + 1] if ">" in words else ""
    words = words[1 : words.index(">")] if into else words[1:]
    if words[0] == "train":
        words = [*words[: words.index("--gpus")], *words[words.index("--gpus") + 2 :]] if "--gpus" in words else words
        words = [*words, *SHORT, LORA]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, (words, ended.output, ended.exception)
    if into:
        Path(into).write_text(ended.stdout)


def test_the_first_models_commands_run_as_written(place):
    done = commands(FIRST)
    assert " ".join(words[1] for words in done) == "doctor data data init plan train eval eval eval merge"
    for words in done:
        if words[1] != "doctor":  # tests/test_doctor.py runs it
            run(words)
    samples = [json.loads(line) for line in Path("runs/pairs/samples.jsonl").read_text().splitlines()]
    assert samples and Path("runs/pairs/report.html").exists()
    names = re.findall(r"^(\w+) = (\w+)\.from_pretrained\(\"([^\"]+)\"\)$", FIRST, re.M)
    assert [name for name, *_ in names] == ["model", "processor"]
    exec(re.findall(r"^```python\n(.*?)^```", FIRST, re.M | re.S)[0], loaded := {})
    assert type(loaded["model"]).__name__ == "LlavaForConditionalGeneration" and loaded["processor"].tokenizer


def test_the_readmes_commands_run_as_written(place):
    done = commands(README)
    assert " ".join(words[1] for words in done) == "doctor data data init plan train merge"
    for words in done[1:]:
        run(words)


def test_the_readmes_other_commands_are_understood():
    lines = re.findall(r"^mmfast [^>\n]+$", README.partition("## Your own")[2], re.M)
    assert len(lines) >= 11
    for line in lines:
        understood(shlex.split(line, comments=True))


def test_the_shown_row_is_a_pair(place):
    (shown,) = re.findall(r"^```json\n(.*?)^```", FIRST, re.M | re.S)
    row = json.loads(shown) | {"images": ["train-0.png"]}
    Path("one.jsonl").write_text(json.dumps(row))
    ended = CliRunner().invoke(app, ["data", "check", "one.jsonl", "--model", MODEL])
    assert ended.exit_code == 0 and re.search(r"^pairs: 1$", ended.stdout, re.M), ended.output


@pytest.mark.parametrize("text", [FIRST, README], ids=["first-model", "README"])
def test_the_shown_config_loads(text, tmp_path):
    (shown,) = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "my.toml").write_text(shown)
    config = load(tmp_path / "my.toml")
    assert config.model.path == MODEL and config.data.path == "pairs.jsonl" and config.model.lora
    assert len([line for line in shown.splitlines() if "=" in line]) <= 10
