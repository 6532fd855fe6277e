"""docs/tutorial.md: its commands on the world run as they are written, on a smaller world and for two steps; those on
one's own images are understood, and its files load."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.config import load as load_training
from mmfast.rounds import settings
from mmfast.rounds.launch import Machine
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model
from tests.rounds.crews import Inside

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
WORLD_PART, OWN_PART = PAGE.split("## On your own images")
ROOT = get_command(app)


def commands(text):
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def files(text):
    """The TOML files that a reader saves, by the names in their first lines."""
    return {name: body for name, body in re.findall(r"^```toml\n# (\S+)\n(.*?)^```", text, re.M | re.S)}


def understood(words):
    """The line is one that its command takes."""
    assert words[0] == "mmfast", words
    found, rest = ROOT, words[1:]
    if rest[0] == "eval" and rest[1] not in found.commands["eval"].commands:
        rest.insert(1, "run")
    while getattr(found, "commands", None):
        found, *rest = found.commands[rest[0]], *rest[1:]
    found.make_context(words[1], list(rest))


def test_every_command_is_understood_and_every_file_loads(tmp_path):
    assert len(commands(WORLD_PART)) >= 14 and len(commands(OWN_PART)) >= 5
    for words in commands(PAGE):
        understood(list(words))
    assert set(files(PAGE)) == {"train.toml", "rounds.toml", "mine.toml"}
    known = {name: options_of(ROOT, name) for name in ("generate", "eval", *settings.STAGES, *settings.MAKERS)}
    for name, body in files(PAGE).items():
        (tmp_path / name).write_text(body)
        if name == "train.toml":
            load_training(tmp_path / name)
        else:
            settings.load(tmp_path / name, [], known)


def test_the_page_links_to_pages_that_are_there():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).exists(), target
    for page in ("README.md", "docs/README.md"):
        assert "tutorial.md" in (Path(__file__).parents[2] / page).read_text()


# What makes each command small: the world answers in the place of a model that was never trained
WORLD = "runs/demo/seed-0/world"
SHORT = ["train.steps=2", "train.pairs_per_step=2", "data.workers=0", "log.progress=false", "parallel.threads=1"]
SMALL = {
    "generate": ["--limit", "8"],
    "eval": ["--limit", "4"],
    "train": SHORT,
    "rounds": [*SHORT, "rounds.keep=last", "rounds.stop=never", "evaluate.limit=4"],
}
ANSWERS = ["generate.engine=world", f"generate.model={WORLD}", "generate.noise=0.5", "prompts.limit=8"]


def small(words):
    more = list(SMALL.get(words[1], []))
    if words[1] == "generate":
        at = words.index("--engine")
        words = [*words[:at], "--engine", "world", "--model", WORLD, "--noise", "0.5", *words[at + 4 :]]
        del words[words.index("--limit") : words.index("--limit") + 2]
    if words[1:3] == ["eval", "diff"]:
        more = []
    if words[1] == "rounds" and "generate={}" not in words:
        more += ANSWERS
    return [*words[1:], *more]


@pytest.mark.slow
def test_the_commands_on_the_world_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Machine, "run", Inside.run)
    monkeypatch.setattr(Machine, "ran", [], raising=False)
    for name, body in files(WORLD_PART).items():
        Path(name).write_text(body)
    for words in commands(WORLD_PART):
        if words[1] == "demo":  # what it leaves
            write_world(WORLD, WorldSpec(base=1, pairs=12, groups=1, test=6))
            tiny_model("llava", "runs/demo/seed-0/base/export/hf")
            continue
        ended = CliRunner().invoke(app, small(words))
        assert ended.exit_code == 0, (words, ended.output, ended.exception)
    assert Path("runs/afternoon/run/report.html").exists() and Path("runs/rounds/rounds.html").exists()
    assert json.loads(Path("runs/rounds/result.json").read_text())["rounds"] == 2
    assert json.loads(Path("runs/corrected/result.json").read_text())["rounds"] == 1
    assert not Path("runs/corrected/rounds/01/answers").exists()
