"""What goes wrong in real commands: a critic that fails or always says the same, answers that make no pair, a full
disk, two starts in one folder, a look at a folder while it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.job.runfolder import Lock
from mmfast.rounds import loop
from mmfast.rounds.settings import MAKERS, STAGES, load
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model
from tests.make.stub_server import MODEL, Stub, serving
from tests.rounds.crews import Inside, Pretend

pytest.importorskip("openai")

FILE = """
output_dir = "{out}"
[rounds]
count = 1
keep = "last"
stop = "never"
[prompts]
path = "{world}/pairs.jsonl"
[generate]
engine = "world"
model = "{world}"
preset = "sima"
noise = {noise}
[[feedback]]
stage = "critique"
engine = "{url}"
model = "{model}"
preset = "sima"
retries = 0
allow = {allow}
[[pairs]]
rule = "sima"
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
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("given") / "world", WorldSpec(base=1, pairs=30, groups=1, test=2))


class Untrained(Inside):
    """Every command is real but the training."""

    def run(self, command, log, **more):
        crew = Pretend() if command[0] == "train" else super()
        crew.run(command, log, **more)


def go(folder: Path, world: Path, url: str = "http://localhost:1", *, allow: float = 0.0, noise: float = 0.5):
    file = folder / "rounds.toml"
    given = {"url": url, "model": MODEL, "allow": allow, "noise": noise, "base": "base"}
    file.write_text(FILE.format(out=folder / "out", world=world, **given))
    root = get_command(app)
    asked = load(file, [], {name: options_of(root, name) for name in ("generate", *STAGES, *MAKERS)})
    return loop.run(asked, Untrained(), Console(quiet=True), report=lambda asked: asked.folder)


def critic(stub: Stub, fails: float, says=lambda number: f"[[{1 + number % 2}]]"):
    """What a stub says to a critic's questions, the handshake being others: some fail, by what they are about."""

    def fault(body):
        text = json.dumps(body["messages"])
        if "Answer 1" not in text:
            return None
        number = sum(text.encode())
        if number % 100 < 100 * fails:
            return 400
        reply = stub.completion(body)
        reply["choices"][0]["message"]["content"] = says(number // 100)
        return (200, {}, reply)

    return fault


def test_a_critic_that_fails_for_a_third_of_the_rows_ends_the_rounds_and_allow_lets_it_pass(tmp_path, world):
    stub = Stub()
    stub.always = critic(stub, 0.3)
    with serving(stub):
        with pytest.raises(ValueError, match=r"(?s)round 1, critique: .*\d+ of \d+ requests failed") as told:
            go(tmp_path, world, stub.url)
        assert "failed.jsonl" in str(told.value) and "the same command goes on here" in str(told.value)
        home = tmp_path / "out" / "rounds" / "01"
        failed = (home / "critique" / "failed.jsonl").read_text().splitlines()
        assert 3 <= len(failed) <= 15
        go(tmp_path, world, stub.url, allow=0.5)
    made = len((home / "pairs.jsonl").read_text().splitlines())
    assert 0 < made <= 30 - len(failed) and (tmp_path / "out" / "result.json").exists()


def test_a_critic_that_always_says_the_same_ends_the_rounds(tmp_path, world):
    stub = Stub()
    stub.always = critic(stub, 0, says=lambda number: "[[1]]")
    with serving(stub), pytest.raises(ValueError, match=r"the answer that stood first in all \d+ comparisons"):
        go(tmp_path, world, stub.url)
    assert not (tmp_path / "out" / "rounds" / "01" / "pairs.jsonl").exists()


def test_answers_that_are_all_the_same_make_no_pair(tmp_path, world):
    """A greedy and a sampled answer without noise."""
    stub = Stub()
    stub.always = critic(stub, 0)
    with (
        serving(stub),
        pytest.raises(ValueError, match=r"round 1, critique: .*answers has no greedy and sampled answer"),
    ):
        go(tmp_path, world, stub.url, noise=0.0)


def test_a_critic_whose_replies_cannot_be_read_makes_no_pair(tmp_path, world):
    stub = Stub()
    stub.always = critic(stub, 0, says=lambda number: "perhaps")
    with serving(stub), pytest.raises(ValueError, match=r"round 1, pairs: nothing is left to write") as told:
        go(tmp_path, world, stub.url)
    assert re.search(r"without a verdict: \d\d", str(told.value)) and "Traceback" not in str(told.value), told.value


# the command itself


def command(folder: Path, world: Path, base: str = "base") -> list[str]:
    """With the world as critic."""
    file = folder / "rounds.toml"
    given = {"url": "world", "model": world, "allow": 0, "noise": 0.5, "base": base}
    text = FILE.format(out=folder / "out", world=world, **given)
    file.write_text(text.replace("retries = 0\n", "noise = 0.4\n"))
    return [sys.executable, "-m", "mmfast.cli", "rounds", str(file)]


def test_a_second_start_in_the_same_folder_is_refused_and_its_status_is_shown(tmp_path, world):
    line = command(tmp_path, world)
    lock = Lock(tmp_path / "out")
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and done.stderr.startswith("mmfast: output_dir: ")
        assert "is in use by process" in done.stderr and done.stderr.count("\n") == 1
        shown = subprocess.run([*line, "--status"], capture_output=True, text=True, timeout=300)
        assert shown.returncode == 0 and "to do" in shown.stdout, shown.stderr
    finally:
        lock.close()


SCRIPT = """
mount -t tmpfs -o size=16M tmpfs "$OUT" || exit 1
"$@" rounds.count=1 || exit 2
free=$(df --output=avail "$OUT" | tail -1)
dd if=/dev/zero of="$OUT/filler" bs=1K count=$((free - $LEFT)) 2>/dev/null || exit 3
"$@" rounds.count=2 2>"$SAID/full" && exit 4
rm "$OUT/filler"
"$@" rounds.count=2 2>"$SAID/again" || exit 5
cat "$OUT/result.json" >"$SAID/result"
"""


@pytest.mark.slow
@pytest.mark.parametrize("left", [16, 64, 2000])
def test_a_disk_that_fills_in_round_2_is_told_and_gone_on_from_once_there_is_space(tmp_path, world, left):
    """A small file system of which so many kilobytes are left: for a note, a log and rows, not for a checkpoint."""
    out = tmp_path / "out"
    out.mkdir()
    space = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*space, "mount", "-t", "tmpfs", "tmpfs", str(out)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    line = command(tmp_path, world, str(tiny_model("llava", tmp_path / "base")))
    known = os.environ | {"OUT": str(out), "SAID": str(tmp_path), "LEFT": str(left), "OMP_NUM_THREADS": "1"}
    subprocess.run([*space, "sh", "-c", SCRIPT, "sh", *line], env=known, check=True, timeout=900)
    said = (tmp_path / "full").read_text()
    assert "Traceback" not in said and "the same command goes on" in said, said
    assert "mmfast: round 2, " in said and ("No space left on device" in said or "is full" in said), said
    again = (tmp_path / "again").read_text()
    assert "round 1, " not in again and "round 2, run" in again, again
    assert json.loads((tmp_path / "result").read_text())["rounds"] == 2
