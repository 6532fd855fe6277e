"""mmfast reproduce killed in every stage: the same command goes on, and what comes out is what comes of one that was
left alone. Under torchrun rank 0 alone looks, speaks and decides."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.engines.stage import rows as rows_of
from mmfast.files import weight_digests
from mmfast.reproduce import need, paper
from mmfast.reproduce import run as running
from mmfast.rounds.settings import MAKERS, STAGES
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model
from tests.make import stand_ins
from tests.make.rank_processes import CONTEXT, run_ranks
from tests.make.system_files import PAPERS
from tests.reproduce.test_stand_ins import changes
from tests.rounds.crews import Pretend
from tests.rounds.test_killed import ended
from tests.rounds.test_killed import run as started

KNOWN = {name: options_of(get_command(app), name) for name in ("generate", "eval", *STAGES, *MAKERS)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=10, groups=1, test=4))


class Killed(BaseException):
    """Nothing of a command's own end runs."""


@pytest.mark.parametrize("name", PAPERS)
def test_killed_before_any_step_the_same_call_runs_that_step_and_those_behind_it(name, world, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.rounds.loop.one_sided", lambda step: None)
    root = stand_ins.write_files(name, tmp_path / "root", world)
    given = changes(name, world)

    def go(folder, crew):
        one = paper.load_paper(name).model_copy(update={"overrides": []})
        files = paper.load_paper(name).overrides_at(root)
        asked = running.settings_of(one, tmp_path / folder, name, 1.0, [*files, *given], KNOWN)
        running.run(asked, crew, Console(quiet=True), report=lambda settings: settings.folder)
        return asked

    whole = Pretend()
    asked = go("alone", whole)
    stages = {"base", "answers", "pairs", "run", "eval", *(one.name for one in asked.feedback)}
    assert stages - {"base"} >= {step.partition("/")[2] for step in whole.ran} and len(whole.ran) >= 3
    for at in range(len(whole.ran)):

        def end(number, made, at=at):
            if number == at:
                raise Killed

        first, second = Pretend(end), Pretend()
        with pytest.raises(Killed):
            go(f"killed-{at}", first)
        go(f"killed-{at}", second)
        assert [*first.ran, *second.ran] == whole.ran and len(first.ran) == at


# killed in truth: slow


def inside(command, log):
    """A command in a process of its own, which costs no import."""
    said = CliRunner().invoke(app, list(command))
    Path(log).write_text(said.output)
    os._exit(said.exit_code)


class Slain:
    """Runs every command in a process, and kills one for good once it has written something; the rounds die with it."""

    main = True

    def __init__(self, at=-1):
        self.ran, self.at, self.killed = [], at, False

    def run(self, command, log, *, wide, follow):
        made = Path(command[1]).parent / "run" if command[0] == "train" else Path(command[command.index("--out") + 1])
        before, process = written(made), CONTEXT.Process(target=inside, args=(list(command), str(log)))
        process.start()
        if len(self.ran) == self.at:
            while process.is_alive() and written(made) <= before:
                time.sleep(0.002)
            process.kill()
        process.join()
        self.killed = process.exitcode == -signal.SIGKILL
        if len(self.ran) == self.at:
            raise Killed
        assert process.exitcode == 0, Path(log).read_text()
        self.ran.append(f"{log.parents[1].name}/{log.stem}")


def written(made):
    """Bytes of what a command makes, and of what it will call so."""
    total, home = 0, made.parent
    for file in home.rglob("*"):
        place = file.relative_to(home)
        if made.name in str(place) and place.parts[0] not in ("logs", "steps"):
            with suppress(FileNotFoundError):  # a temporary one, that has its name by now
                total += file.stat().st_size if file.is_file() else 0
    return total


def made(folder):
    """All that a run has made and that has no clock in it."""
    found = {}
    for path in sorted(folder.glob("rounds/*/*")):
        if path.is_dir() and (path / "manifest.json").exists():
            found[path.name] = [*rows_of(path)]
        elif path.suffix == ".jsonl":
            found[path.name] = path.read_text()
    found["weights"] = weight_digests(folder / "rounds" / "01" / "run" / "export" / "hf")
    for file in sorted(folder.glob("rounds/*/eval/*/answers.jsonl")):
        found[str(file.relative_to(folder))] = file.read_text().splitlines()[1:]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sima", "mllm_dpo", "dgpref_llava"])
def test_killed_within_every_stage_it_ends_as_one_that_was_left_alone(name, world, tmp_path):
    root, base = stand_ins.write_files(name, tmp_path / "root", world), tiny_model("llava", tmp_path / "base")
    given = [*changes(name, world), f"model.path={base}", "train.checkpoint_every=1"]

    def go(folder, crew):
        asked = running.settings_of(paper.load_paper(name), root, folder, 1.0, given, KNOWN)
        running.run(asked, crew, Console(quiet=True), report=lambda settings: settings.folder)
        return asked.folder

    whole, killed = Slain(), []
    alone = go("alone", whole)
    for number, step in enumerate(whole.ran):  # each start ends the step that was killed, and is killed in the next
        crew = Slain(at=min(number, 1))
        with pytest.raises(Killed):
            go("killed", crew)
        assert crew.ran == whole.ran[:number][-1:]
        killed += [step] * crew.killed
    last = Slain()
    out = go("killed", last)
    assert last.ran == whole.ran[-1:] and made(out) == made(alone)
    assert len(killed) > 0.7 * len(whole.ran), killed


# under torchrun


def looked(name, root, more):
    """In one rank: what the command said, and whether it fetched or looked."""
    need.memory = need.tflops = lambda *given: 1.0
    said = CliRunner().invoke(app, ["reproduce", name, "--root", root, *more])
    told = {"output": said.output, "code": said.exit_code, "error": str(said.exception or "")}
    Path(root).with_name(f"said-{os.environ['RANK']}.json").write_text(json.dumps(told))


def test_rank_0_alone_looks_and_speaks(tmp_path):
    (tmp_path / "root").mkdir()
    run_ranks(2, tmp_path, looked, "rlhfv", str(tmp_path / "root"), ["--check"])
    first, other = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2))
    assert "MISSING  people's corrections" in first["output"] and "things are missing or wrong" in first["error"]
    assert other["output"] == "" and (first["code"], other["code"]) == (1, 1)


@pytest.mark.slow
def test_two_ranks_reproduce_together(world, tmp_path):
    root = stand_ins.write_files("rlhfv", tmp_path / "root", world)
    base = stand_ins.muffin(tmp_path / "published")
    imported = CliRunner().invoke(app, ["import", str(base), str(tmp_path / "base")])
    assert imported.exit_code == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "mmfast.cli", "reproduce", "rlhfv", *changes("rlhfv", world), f"model.path={tmp_path / 'base'}"]
    with (tmp_path / "said").open("w") as said:
        ended(started([*launcher, *command, "--root", str(root)], stdout=said))
    told = (tmp_path / "said").read_text()
    assert told.count("there  people's corrections") == 1 and told.count("| aligned | objhal.CHAIRs_refine") == 1, told
