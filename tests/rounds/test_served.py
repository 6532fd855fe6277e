"""Two whole rounds on the world's pictures through a real server: it answers the prompts, it is the critic whose
verdicts are read from its texts, and it judges a benchmark. Behind `transformers serve` stands a tiny model that was
taught to describe and to say "[[1]]"; where MMFAST_SERVER="URL MODEL" is set, that server is asked as well."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.main import get_command

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.config.toml import build
from mmfast.engines.stage import rows
from mmfast.rounds import loop, report
from mmfast.rounds.settings import MAKERS, STAGES, load
from mmfast.rounds.steps import note_of
from mmfast.train import train
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model
from tests.evals.test_mmhal import folder_of
from tests.make.real_server import real
from tests.rounds.crews import Inside

pytest.importorskip("openai")

CRITIC = """
version = 1
about = "Which of two answers is better, in few words"
parser = "last_brackets"
slots = ["question", "a", "b"]
labels = { a = "1", b = "2" }
text = "{question}\\n\\n1: {a}\\n\\n2: {b}\\n\\nWhich?"
"""
FILE = """
output_dir = "{out}"
[rounds]
count = 2
keep = "last"
stop = "never"
[prompts]
path = "{world}/pairs.jsonl"
limit = 8
[generate]
engine = "{url}"
model = "{model}"
preset = "sima"
max-tokens = 24
prices = "1,1000"
[[feedback]]
stage = "critique"
engine = "{url}"
model = "{model}"
prompt = "{critic}"
order = "one"
max-tokens = 8
allow = {allow}
[[feedback]]
stage = "critique"
name = "exact"
engine = "world"
model = "{world}"
noise = 0.7
[[pairs]]
rule = "sima"
of = "critique"
keep-cut = true
[[pairs]]
rule = "sima"
of = "exact"
keep-cut = true
[evaluate]
bench = ["world", "mmhal"]
data = "{data}"
limit = 2
max_tokens = 12
judge = "{url}"
judge_model = "{model}"
[model]
path = "{base}"
dtype = "float32"
[data]
workers = 0
[train]
steps = 2
pairs_per_step = 2
tokens_per_pack = 1024
checkpoint_every = 2
[parallel]
threads = 1
activation_checkpointing = false
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The world, the benchmarks' folders, the critic's prompt."""
    folder = tmp_path_factory.mktemp("given")
    world = write_world(folder / "world", WorldSpec(base=24, pairs=10, groups=1, test=2))
    data = folder / "data"
    (data / "mmhal").mkdir(parents=True)
    folder_of(data / "mmhal")
    for number in range(96):
        Image.new("RGB", (8, 8)).save(data / "mmhal" / f"{number}_o.jpg")
    (data / "world").symlink_to(world)
    (folder / "critic.toml").write_text(CRITIC)
    return {"world": world, "data": data, "critic": folder / "critic.toml", "folder": folder}


@pytest.fixture(scope="module")
def taught(given):
    """A tiny model that describes pictures, and says "[[1]]" where it is asked which of two answers is better."""
    described = [json.loads(line) for line in (given["world"] / "base.jsonl").read_text().splitlines()]
    told, rng = [row["chosen"][0]["content"][0]["text"] for row in described], random.Random(0)

    def compared(row):
        question = row["prompt"][0]["content"][1]["text"]
        text = f"{question}\n\n1: {rng.choice(told)}\n\n2: {rng.choice(told)}\n\nWhich?"
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return row | {"id": f"{row['id']}-c", "prompt": prompt, "chosen": [{"role": "assistant", "content": "[[1]]"}]}

    file = given["world"] / "taught.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*described, *map(compared, described)]))
    settings = {
        "output_dir": str(given["folder"] / "teaching"),
        "model": {"path": str(tiny_model("llava", given["folder"] / "tiny")), "dtype": "float32", "freeze": []},
        "data": {"path": str(file), "workers": 0},
        "objective": {"kind": "sft"},
        "optim": {"lr": 1e-2},
        "train": {"steps": 80, "pairs_per_step": 8, "tokens_per_pack": 4096, "checkpoint_every": 80},
        "parallel": {"threads": 1, "activation_checkpointing": False},
        "export": {"formats": ["hf"]},
    }
    train(build(settings))
    return given["folder"] / "teaching" / "export" / "hf"


def two_rounds(out: Path, given: dict, base: Path, url: str, model: str, allow: float = 0.0):
    file = out.with_suffix(".toml")
    file.write_text(FILE.format(out=out, base=base, url=url, model=model, allow=allow, **given))
    root = get_command(app)
    asked = load(file, [], {name: options_of(root, name) for name in ("generate", *STAGES, *MAKERS, "eval")})
    crew = Inside()
    loop.run(asked, crew, Console(quiet=True), report=report.write)
    return asked, crew


def test_two_rounds_through_transformers_serve(given, taught, tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "MMFAST_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "out"
    with real(taught) as url:
        asked, crew = two_rounds(out, given, taught, url, str(taught))
        steps = ["answers", "critique", "exact", "pairs", "pairs-2", "run", "eval"]
        assert crew.ran == ["00/eval", *(f"{home}/{step}" for home in ("01", "02") for step in steps)]
        again = Inside()
        loop.run(asked, again, Console(quiet=True), report=report.write)
    assert again.ran == []
    for number in ("01", "02"):
        home = out / "rounds" / number
        answers = list(rows(home / "answers"))
        assert len(answers) == 16 and len({row["answer"] for row in answers}) > 2
        verdicts = [row for row in rows(home / "critique") if row["verdict"]]
        assert len(verdicts) >= 3 and all(row["verdict"] == row["order"][0] for row in verdicts)  # "[[1]]": the first
        assert len((home / "pairs.jsonl").read_text().splitlines()) == len(verdicts)
        assert (home / "eval" / "mmhal" / "judge.jsonl").stat().st_size and (
            home / "eval" / "mmhal" / "result.json"
        ).exists()
    spent = json.loads(note_of(asked, 1, "answers").read_text())["spent"]
    assert spent["tokens_in"] > 0 < spent["tokens_out"]
    assert spent["paid"] == pytest.approx((spent["tokens_in"] + 1000 * spent["tokens_out"]) / 1e6, abs=1e-4)
    assert json.loads(note_of(asked, 1, "eval").read_text())["spent"]["tokens_out"] > 0  # the judge's
    page = report.write(asked).read_text()
    assert "tokens from servers" in page and "paid" in page and "<h2>mmhal</h2>" in page


@pytest.mark.skipif("MMFAST_SERVER" not in os.environ, reason='MMFAST_SERVER="URL MODEL" names no server')
def test_two_rounds_through_a_server_of_yours(given, taught, tmp_path):
    """Any that reads images, as vLLM. Its critic may say anything: the world's verdicts make pairs."""
    url, model = os.environ["MMFAST_SERVER"].split()
    asked, _ = two_rounds(tmp_path / "out", given, taught, url, model, allow=1.0)
    assert json.loads((asked.folder / "result.json").read_text())["rounds"] == 2
