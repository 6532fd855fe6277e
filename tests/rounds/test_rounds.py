"""Rounds: which commands run, in which order, and again after a kill, a deletion or another config."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console
from typer.main import get_command

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.packages import tomllib
from mmfast.rounds import choice, loop, report, steps
from mmfast.rounds.launch import Failed, Interrupted
from mmfast.rounds.settings import MAKERS, STAGES, load
from mmfast.rounds.steps import note_of
from mmfast.world.dataset import WorldSpec, write_world
from tests.evals.test_mmhal import folder_of
from tests.rounds.crews import Pretend

ROOT = get_command(app)
KNOWN = {name: options_of(ROOT, name) for name in ("generate", "eval", *STAGES, *MAKERS)}
QUIET = Console(quiet=True)
FILE = """
output_dir = "{out}"
[rounds]
count = 2
keep = "last"
stop = "never"
[prompts]
path = "{prompts}"
[generate]
engine = "world"
model = "world"
[[feedback]]
stage = "decompose"
engine = "world"
model = "world"
[[feedback]]
stage = "check"
experts = "world"
engine = "world"
model = "world"
[[feedback]]
stage = "grade"
[[pairs]]
rule = "rlaifv"
[model]
path = "base"
"""
JUDGED = """
[evaluate]
bench = ["world"]
data = "{world}"
best = "world.chair_s"
"""
ONE = ("answers", "decompose", "check", "grade", "pairs", "run")
ALL = [f"{home}/{name}" for home in ("01", "02") for name in ONE]


def settings(folder, text=FILE, *overrides, out="out"):
    file, world = folder / "rounds.toml", folder / "world"
    if not world.exists():
        write_world(world, WorldSpec(base=1, pairs=2, groups=1, test=3))
    file.write_text(text.format(out=folder / out, prompts=world / "pairs.jsonl", world=world))
    return load(file, overrides, KNOWN)


def go(folder, crew, *overrides, text=FILE, page=lambda asked: asked.folder):
    asked = settings(folder, text, *overrides)
    return loop.run(asked, crew, QUIET, report=page)


def test_every_command_runs_once_and_a_second_start_runs_none(tmp_path):
    crew = Pretend()
    model = go(tmp_path, crew)
    assert crew.ran == ALL and str(model).endswith("02/run/export/hf")
    again = Pretend()
    assert go(tmp_path, again) == model and again.ran == []


FOLLOWS = {  # what a round's step is read by, directly or not
    "answers": ONE,
    "decompose": ONE[1:],
    "check": ONE[2:],
    "grade": ONE[3:],
    "pairs": ONE[4:],
    "run": ONE[5:],
}


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("home", ["01", "02"])
def test_what_was_deleted_is_made_again_with_all_that_follows_and_nothing_else(tmp_path, home, name):
    go(tmp_path, Pretend())
    made = tmp_path / "out" / "rounds" / home / name
    made = made.with_suffix(".jsonl") if name == "pairs" else made
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    crew = Pretend()
    go(tmp_path, crew)
    expected = [f"{home}/{step}" for step in FOLLOWS[name]]
    if home == "01":  # what the model of round 1 did not make: the world answers in round 2
        expected += [f"02/{step}" for step in ONE]
    assert crew.ran == expected


@pytest.mark.parametrize("end", range(len(ALL)))
def test_ended_anywhere_it_goes_on_where_it_was(tmp_path, end):
    def kill(number, made):
        if number == end:
            (made if made.suffix else made / "half").parent.mkdir(parents=True, exist_ok=True)
            raise Interrupted(15)

    crew = Pretend(kill)
    with pytest.raises(Interrupted):
        go(tmp_path, crew)
    again = Pretend()
    go(tmp_path, again)
    assert crew.ran + again.ran == ALL


def test_what_a_killed_step_left_is_kept_unless_it_was_made_of_other_things(tmp_path):
    def kill(number, made):
        if number == 1:  # decompose
            made.mkdir(parents=True, exist_ok=True)
            (made / "rows-0.jsonl").write_text("half")
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        go(tmp_path, Pretend(kill))
    half = tmp_path / "out" / "rounds" / "01" / "decompose" / "rows-0.jsonl"
    go(tmp_path, Pretend())
    assert half.exists()  # the command itself goes on with it
    # the same kill, but the answers under it are made anew
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(Interrupted):
        go(tmp_path, Pretend(kill))
    shutil.rmtree(half.parents[1] / "answers")
    go(tmp_path, Pretend())
    assert not half.exists()


def test_a_config_that_changed_is_refused_by_name(tmp_path):
    go(tmp_path, Pretend())
    with pytest.raises(
        ValueError, match=r"round 1, answers was made by other settings: noise was absent and is \"0.2\""
    ):
        go(tmp_path, Pretend(), "generate.noise=0.2")
    with pytest.raises(ValueError, match=r"round 1, run .*optim.lr was .* and is .*; .*|optim.lr"):
        go(tmp_path, Pretend(), "optim.lr=0.5")
    more = Pretend()
    go(tmp_path, more, "rounds.count=3")  # one more round is none of it
    assert more.ran == [f"03/{name}" for name in ONE]


def test_prompts_or_a_base_that_changed_between_rounds_are_refused_by_name(tmp_path):
    def kill(number, made):
        if made.parent.name == "02":
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        go(tmp_path, Pretend(kill))
    with pytest.raises(
        ValueError, match=r'round 1, run was made by other settings: model.path was "base" and is "other"'
    ):
        go(tmp_path, Pretend(), "model.path=other")
    prompts = tmp_path / "world" / "pairs.jsonl"
    before = prompts.read_bytes()
    prompts.write_bytes(before + before.splitlines(keepends=True)[0])
    told = (
        r"round 1, answers was made by other settings: contents.prompts.path was \"\w{16}\" and is \"\w{16}\": change"
    )
    with pytest.raises(ValueError, match=told):
        go(tmp_path, Pretend())
    assert {row["state"] for row in loop.status(settings(tmp_path)) if row["step"] == "answers"} == {
        "made by other settings", "begun"
    }  # fmt: skip
    prompts.write_bytes(before)
    crew = Pretend()
    go(tmp_path, crew)
    assert crew.ran == ALL[len(ONE) :]
    prompts.unlink()
    with pytest.raises(ValueError, match=r"\[prompts\] path: .*pairs.jsonl does not exist"):
        go(tmp_path, Pretend())


def test_fewer_rounds_than_are_done_keep_the_others_files(tmp_path):
    go(tmp_path, Pretend())
    crew = Pretend()
    model = go(tmp_path, crew, "rounds.count=1")
    assert crew.ran == [] and str(model).endswith("01/run/export/hf")
    assert (tmp_path / "out" / "rounds" / "02" / "run" / "export" / "hf").exists()
    assert str(go(tmp_path, crew)).endswith("02/run/export/hf") and crew.ran == []


@pytest.mark.parametrize("home", ["00", "01", "02"])
def test_an_evaluation_that_was_deleted_is_made_again_alone(tmp_path, home):
    crew = Pretend()
    crew.quality = {"00": 0.6, "01": 0.3, "02": 0.1}
    told = ("rounds.keep=best", FILE + JUDGED)
    model = go(tmp_path, crew, told[0], text=told[1])
    shutil.rmtree(tmp_path / "out" / "rounds" / home / "eval")
    again = Pretend()
    again.quality = crew.quality
    assert go(tmp_path, again, told[0], text=told[1]) == model and again.ran == [f"{home}/eval"]


def test_an_evaluation_that_comes_out_otherwise_moves_the_next_round(tmp_path):
    """Round 2 started from round 1, which is no longer the best: it is made again, from the base."""
    crew = Pretend()
    crew.quality = {"00": 0.6, "01": 0.3, "02": 0.1}
    go(tmp_path, crew, "rounds.keep=best", text=FILE + JUDGED)
    shutil.rmtree(tmp_path / "out" / "rounds" / "01" / "eval")
    again = Pretend()
    again.quality = {"01": 0.7, "02": 0.1}
    go(tmp_path, again, "rounds.keep=best", text=FILE + JUDGED)
    assert again.ran == ["01/eval", *(f"02/{name}" for name in ONE), "02/eval"]
    assert 'path = "base"' in (tmp_path / "out" / "rounds" / "02" / "run.toml").read_text()


def test_a_disk_that_is_full_is_told_with_the_step_and_gone_on_from(tmp_path, monkeypatch):
    """Of the rounds' own notes; what a command does there is test_wrong.py's."""
    go(tmp_path, Pretend(), "rounds.count=1")
    written = steps.write_json

    def full(path, value):
        if "/02/steps/grade" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(path, value)

    monkeypatch.setattr(steps, "write_json", full)
    with pytest.raises(ValueError, match="round 2, grade: No space left on device; the same command goes on here"):
        go(tmp_path, Pretend())
    monkeypatch.undo()
    crew = Pretend()
    go(tmp_path, crew)
    assert crew.ran == ["02/grade", "02/pairs", "02/run"]


def test_a_moved_folder_is_the_same(tmp_path):
    go(tmp_path, Pretend())
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    crew = Pretend()
    loop.run(settings(tmp_path, out="elsewhere"), crew, QUIET, report=lambda asked: asked.folder)
    assert crew.ran == []


def test_the_best_model_is_kept_by_more_than_chance(tmp_path):
    crew = Pretend()
    crew.quality = {"00": 0.6, "01": 0.3, "02": 0.29, "03": 0.1}
    model = go(tmp_path, crew, "rounds.keep=best", "rounds.count=3", text=FILE + JUDGED)
    asked = settings(tmp_path, FILE + JUDGED, "rounds.keep=best", "rounds.count=3")
    stood = choice.standings(asked, 3)
    assert [one.better for one in stood] == [True, False, True] and [one.against for one in stood] == [0, 1, 1]
    assert choice.start_of(asked, 3) == 1  # round 2 was no better than chance, so round 3 starts from round 1
    assert str(model).endswith("03/run/export/hf")
    config = (tmp_path / "out" / "rounds" / "03" / "run.toml").read_text()
    assert "rounds/01/run/export/hf" in config


def test_rounds_end_where_nothing_is_gained(tmp_path):
    crew = Pretend()
    crew.quality = {"00": 0.5, "01": 0.5}
    model = go(tmp_path, crew, "rounds.keep=best", "rounds.stop=no gain", "rounds.count=4", text=FILE + JUDGED)
    assert str(model) == "base" and crew.ran[-1] == "01/eval"
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == {"rounds": 1, "kept": 0, "model": "base"}


def test_earlier_pairs_are_mixed_in_and_the_reference_is_the_base(tmp_path):
    go(tmp_path, Pretend(), "rounds.mix=0.25", "rounds.reference=initial")
    config = (tmp_path / "out" / "rounds" / "02" / "run.toml").read_text()
    assert "rounds/01/pairs.jsonl" in config and "0.25" in config
    assert 'model = "base"' in config.partition("[reference]")[2].partition("\n[")[0]


def test_several_sources_of_pairs_are_trained_on_together(tmp_path):
    text = FILE + '[[pairs]]\nof = "grade"\nrule = "rlaifv"\n[[pairs]]\nmake = "sft"\nof = "answers"\n'
    crew = Pretend()
    go(tmp_path, crew, "rounds.mix=0.5", text=text)
    made = [name for name in crew.ran if "pairs" in name]
    assert made == [f"{home}/{name}" for home in ("01", "02") for name in ("pairs", "pairs-2", "pairs-3")]
    sources = tomllib.loads((tmp_path / "out" / "rounds" / "02" / "run.toml").read_text())["data"]["path"]
    names = ["/".join(source["path"].split("/")[-2:]) for source in sources]
    assert names == [f"{home}/{name}.jsonl" for home in ("02", "01") for name in ("pairs", "pairs-2", "pairs-3")]
    assert [source["weight"] for source in sources] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_prompts_are_split_into_parts_of_their_own(tmp_path):
    asked = settings(tmp_path, FILE, "rounds.prompts=split")
    commands = [step.command for step in loop.steps_of(asked) if step.name == "answers"]
    assert [command[command.index("--part") + 1] for command in commands] == ["1/2", "2/2"]


def test_current_is_the_model_of_the_round(tmp_path):
    text = FILE.replace('engine = "world"\nmodel = "world"', 'engine = "local"\nmodel = "current"', 2)
    crew = Pretend()
    go(tmp_path, crew, text=text)
    notes = [json.loads(note_of(settings(tmp_path, text), n, "decompose").read_text()) for n in (1, 2)]
    models = [note["made_by"]["command"][note["made_by"]["command"].index("--model") + 1] for note in notes]
    assert models == ["base", "ROUNDS/01/run/export/hf"]
    shutil.rmtree(tmp_path / "out" / "rounds" / "01" / "run")  # the critic of round 2 is made anew with the model
    crew = Pretend()
    go(tmp_path, crew, text=text)
    assert crew.ran == ["01/run", *(f"02/{name}" for name in ONE)]


class Silent(Pretend):
    """One command leaves nothing, and says why."""

    def __init__(self, name, error=False):
        super().__init__()
        self.name, self.error = name, error

    def run(self, command, log, **more):
        if log.stem != self.name:
            return super().run(command, log, **more)
        log.write_text("groups: 8\ngroups without a pair: 8\n")
        if self.error:
            raise Failed("No space left on device")
        return None


def test_no_pairs_end_the_rounds_with_the_reason(tmp_path):
    with pytest.raises(
        ValueError, match="round 1, pairs: not one row to train on:\n  groups: 8\n  groups without a pair: 8"
    ):
        go(tmp_path, Silent("pairs"))
    crew = Pretend()
    go(tmp_path, crew)
    assert crew.ran[0] == "01/pairs"


def test_a_command_that_fails_is_told_and_gone_on_with(tmp_path):
    with pytest.raises(ValueError, match=r"round 1, check: No space left on device\n  \(all of it is in .*check.log"):
        go(tmp_path, Silent("check", error=True))
    crew = Pretend()
    go(tmp_path, crew)
    assert crew.ran[0] == "01/check"


def test_a_training_that_was_stopped_is_not_taken_for_a_finished_one(tmp_path):
    with pytest.raises(ValueError, match="round 1, run was stopped before its end"):
        go(tmp_path, Silent("run"))


@pytest.mark.parametrize("place, told", [(0, "first"), (1, "second")])
def test_a_critic_that_always_says_the_same_ends_the_rounds(tmp_path, place, told):
    class Critic(Pretend):
        def run(self, command, log, **more):
            super().run(command, log, **more)
            if log.stem == "critique":
                rows = [{"key": str(n), "row": n, "order": "ab", "verdict": "ab"[place]} for n in range(30)]
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (tmp_path / "out" / "rounds" / "01" / "critique" / "rows-0.jsonl").write_text(text)

    head, _, tail = FILE.partition("[[feedback]]")
    critic = '[[feedback]]\nstage = "critique"\nengine = "world"\nmodel = "world"\n[[pairs]]'
    text = head + critic + tail.partition("[[pairs]]")[2]
    with pytest.raises(ValueError, match=f"the critic chose the answer that stood {told} in all 30 comparisons"):
        go(tmp_path, Critic(), "rounds.count=1", text=text.replace("rlaifv", "sima"))


@pytest.mark.parametrize(
    "change, told",
    [
        (("[rounds]\n", "[rounds]\ncuont = 3\n"), r"\[rounds\] unknown key cuont: did you mean count"),
        (('path = "{prompts}"', ""), r"\[prompts\] path is missing"),
        (('stage = "grade"', 'stage = "grade"\nbeat = 1'), "grade: no option 'beat'; did you mean beta"),
        (("[generate]\n", "[generate]\nout = \"x\"\n"), r"\[generate\]: out is given by the rounds themselves"),
        (('stage = "grade"', 'stage = "graze"'), "stage = 'graze': choose one of critique"),
        (('stage = "grade"', 'stage = "check"\nexperts = "world"'), "two are called check: give one a `name`"),
        (('rule = "rlaifv"', 'rule = "rlaifv"\nof = "critic"'), "of = 'critic': there is no such feedback"),
        (('stop = "never"', 'stop = "never"\n[unknown]'), "unknown key unknown"),
        (("[model]\n", "[data]\npath = \"x\"\n[model]\n"), "data.path is given by the rounds themselves"),
        (('path = "base"', 'path = "base"\nadapter = "a"'), "model.adapter: rounds start from whole weights"),
        (("[model]\n", "[reference]\nmodel = \"x\"\n[model]\n"), "reference.model is given by rounds.reference"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        settings(tmp_path, FILE.replace(*change))


def test_a_round_is_trained_on_something(tmp_path):
    text = FILE.replace("[rounds]", "pairs = []\n[rounds]").replace('[[pairs]]\nrule = "rlaifv"\n', "")
    with pytest.raises(ValueError, match=r"\[\[pairs\]\] is empty: a round is trained on nothing"):
        settings(tmp_path, text)


def test_keeping_the_best_needs_a_benchmark(tmp_path):
    with pytest.raises(ValueError, match=r"need \[evaluate\] bench and best"):
        settings(tmp_path, FILE.replace('"never"', '"no gain"'))


@pytest.mark.parametrize(
    "change, told",
    [
        (("chair_s", "chair_x"), r"best = 'world.chair_x': with an interval world has chair_i, chair_s"),
        (("world.chair_s", "pope.f1"), r"best = 'pope.f1': its benchmark is not among bench"),
        (('bench = ["world"]', 'bench = ["worlds"]'), "no benchmark worlds"),
        (('bench = ["world"]', 'bench = ["world", "world"]'), "names a benchmark twice"),
        (('bench = ["world"]', "bench = 3"), r"\[evaluate\] bench: .*list"),
        (('data = "{world}"', ""), "bench needs data"),
        (('data = "{world}"', 'data = "nowhere"'), "nowhere"),
        (('data = "{world}"', 'data = "{world}"\nlimit = 1'), "questions about one image have no interval"),
        (('data = "{world}"', 'data = "{world}"\nmargin = false'), "margin is of evaluations inside a run"),
        (('data = "{world}"', 'data = "{world}"\nengine = "http://a"'), "asked by local or plain"),
        (('data = "{world}"', 'data = "{world}"\njugde = "local"'), r"\[evaluate\]: no option .jugde.; did you"),
        (('data = "{world}"', 'data = "{world}"\nadapter = "a"'), "adapter is given by the rounds themselves"),
    ],
)  # fmt: skip
def test_a_benchmark_that_cannot_be_measured_is_told_before_a_model_is_asked(tmp_path, change, told):
    crew = Pretend()
    with pytest.raises(ValueError, match=told):
        go(tmp_path, crew, text=FILE + JUDGED.replace(*change))
    assert crew.ran == []


@pytest.fixture
def rated(tmp_path):
    """A config whose benchmark is MMHal's, with its 96 questions and images."""
    folder = tmp_path / "mmhal"
    folder.mkdir()
    folder_of(folder)
    for number in range(96):
        Image.new("RGB", (8, 8)).save(folder / f"{number}_o.jpg")
    return FILE + f'[evaluate]\nbench = ["mmhal"]\nbest = "mmhal.score"\ndata = "{folder}"\n'


def test_a_benchmark_that_needs_a_judge_has_one_named_before_a_model_is_asked(tmp_path, rated):
    crew = Pretend()
    with pytest.raises(
        ValueError, match=r"mmhal needs a judge .officially gpt-4.*: name its engine in judge, its model"
    ):
        go(tmp_path, crew, text=rated)
    judge = 'judge = "http://localhost:1"\njudge_model = "rater"\nflavour = "rlaif-v"\noption = ["a=1", "b=2"]\n'
    with pytest.raises(ValueError, match="every: inside a run no judge is asked, and mmhal needs a judge"):
        go(tmp_path, crew, text=rated + judge + "every = 5\n")
    assert crew.ran == []
    asked = settings(tmp_path, rated + judge)
    choice.check(asked)
    commands = [step.command for step in loop.steps_of(asked) if step.name == "eval"]
    assert all(command[-10:] == commands[0][-10:] for command in commands)
    told = "--judge http://localhost:1 --judge-model rater --flavour rlaif-v --option a=1 --option b=2"
    assert " ".join(commands[0][-10:]) == told and commands[0][4] == "mmhal"
    config = (tmp_path / "rounds.toml").read_text()
    assert "judge" in config and "judge" not in str(asked.training)  # a training knows none


def test_of_several_benchmarks_each_is_checked_by_the_flavour_that_it_has(tmp_path, monkeypatch):
    """RLAIF-V's and RLHF-V's recipes were refused: each benchmark was given the flavours of all."""
    seen = {}

    def names(bench, questions, data, flavour):
        seen[bench] = flavour
        return ["chair_s", "score"], None

    def asking(bench, data, **more):
        return SimpleNamespace(bench=bench, questions=[SimpleNamespace(unit=str(n)) for n in range(2)], data=None)

    monkeypatch.setattr(choice, "asking", asking)
    monkeypatch.setattr(choice, "metric_names", names)
    text = FILE + '[evaluate]\nbench = ["world", "mmhal"]\nbest = "world.chair_s"\ndata = "d"\nflavour = "rlaif-v"\n'
    choice.check(settings(tmp_path, text))
    assert seen == {"world": "", "mmhal": "rlaif-v"}
    with pytest.raises(ValueError, match="flavour: none of world, mmhal has 'rlaif'"):
        choice.check(settings(tmp_path, text, "evaluate.flavour=rlaif"))


def test_where_nothing_is_asked_no_prompts_are_looked_for(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    loop.readable(settings(tmp_path, PUBLISHED))


def test_what_a_judge_has_scored_is_looked_at_before_a_round_is_spent(tmp_path, rated):
    class Judged(Pretend):
        def judge(self, folder, share, questions=60):
            super().judge(folder, share, questions)
            shutil.move(folder / "world", folder / "mmhal")

    crew = Judged()
    with pytest.raises(ValueError, match=r"best = 'mmhal.score': with an interval mmhal has chair_i, chair_s"):
        go(tmp_path, crew, text=rated + 'judge = "local"\njudge-model = "rater"\n')
    assert crew.ran == ["00/eval"]


def test_people_who_ended_their_page_are_gone_on_from_once_every_card_is_done(tmp_path):
    head, _, tail = FILE.partition("[[feedback]]")
    text = (
        head + '[[feedback]]\nstage = "correct"\n[[pairs]]' + tail.partition("[[pairs]]")[2].replace("rlaifv", "rlhfv")
    )
    for complete in (False, True):

        def page(number, made, complete=complete):
            if made.name == "correct":
                made.mkdir(parents=True, exist_ok=True)
                (made / "manifest.json").write_text(json.dumps({"complete": complete}))
                raise Interrupted(2)

        with pytest.raises(Interrupted):
            go(tmp_path, Pretend(page), "rounds.count=1", text=text)
    crew = Pretend()
    go(tmp_path, crew, "rounds.count=1", text=text)
    assert crew.ran == ["01/pairs", "01/run"]


def test_status_names_the_state_of_every_step(tmp_path):
    def kill(number, made):
        if number == 2:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        go(tmp_path, Pretend(kill))
    states = {f"{row['round']:02d}/{row['step']}": row["state"] for row in loop.status(settings(tmp_path))}
    assert states["01/decompose"] == "done" and states["01/check"] == "begun" and states["01/grade"] == "to do"
    shutil.rmtree(tmp_path / "out" / "rounds" / "01" / "answers")
    states = {f"{row['round']:02d}/{row['step']}": row["state"] for row in loop.status(settings(tmp_path))}
    assert states["01/answers"] == "to do again"


class Spoken(Pretend):
    """What is trained is logged, pairs are real records, and servers tell what they cost."""

    def run(self, command, log, **more):
        super().run(command, log, **more)
        home = int(log.parents[1].name)
        made = log.parents[1] / log.stem
        if command[0] == "train":
            rows = [{"step": n, "loss": 0.7 - n / 10, "rewards/margins": n * home} for n in (1, 2)]
            (made / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif command[0] == "data":
            sides = [("one two three four", "one two"), ("one two", "one two three")] * (2 - (home == 2))
            pairs = [{"prompt": "What?", "chosen": chosen, "rejected": rejected} for chosen, rejected in sides]
            made.with_suffix(".jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
            self.say(log, f"pairs compared: 9\nties: {home}\n2 left out: they are empty\n<b> is read\n4 records\n")
        elif command[0] == "check":
            self.say(log, f"made; {home} calls, {home}000 tokens in, 250 out, 0.0{home}50 paid\n")


def table_of(page, first):
    """Of the table with such a first cell in a row: its rows as lists of texts, by the first cells."""
    tables = re.findall("<table>(.*?)</table>", page, re.DOTALL)
    found = next(table for table in tables if f"<td>{first}</td>" in table)
    rows = [re.findall("<t[dh]>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", found)]
    return {row[0]: row[1:] for row in rows}


def test_the_page_tells_the_benchmark_the_training_its_data_and_the_costs(tmp_path):
    crew = Spoken()
    crew.quality = {"00": 0.5, "01": 0.2, "02": 0.2}
    go(tmp_path, crew, text=FILE + JUDGED)
    page = report.write(settings(tmp_path, FILE + JUDGED)).read_text()
    assert "After 2 of 2 rounds the model that is kept is that of round 2" in page
    assert "round 1: world.chair_s -0.3" in page and "beside the base: better" in page
    shown = table_of(page, "chair_s")
    assert shown[""] == ["base", "round 1", "round 2"] and shown["chair_s"][1].startswith("0.2 (")
    assert shown["words of an answer, on average"] == ["2.0"] * 3
    assert page.count("data:image/png") == 2 and "<h2>Training</h2>" in page  # the benchmark, the training
    data = table_of(page, "pairs compared")
    assert (
        data["ties"] == ["1", "2"] and data["left out: they are empty"] == ["2", "2"] and data["records"] == ["4", "4"]
    )
    assert data["words chosen"] == ["3.0", "3.0"] and data["words rejected"] == ["2.5", "2.5"]
    assert data["chosen is longer"] == ["50%", "50%"]
    assert "&lt;b&gt; is read (round 1, pairs; round 2, pairs)" in page
    costs = table_of(page, "tokens to servers")
    assert costs[""] == ["base", "round 1", "round 2", "all"]
    assert costs["tokens to servers"] == ["", "1,000", "2,000", "3,000"] and costs["paid"][-1] == "0.0400"


def test_the_page_leaves_out_what_was_not_done(tmp_path):
    crew = Pretend()
    go(tmp_path, crew, "rounds.count=1")
    shutil.rmtree(tmp_path / "out" / "rounds" / "01" / "eval", ignore_errors=True)
    page = report.write(settings(tmp_path, FILE, "rounds.count=1")).read_text()
    assert "<h2>Time and costs</h2>" in page and "<h2>Training data</h2>" in page
    assert "img alt" not in page and "paid" not in page and "<h2>Training</h2>" not in page


def test_what_a_stopped_start_has_spent_is_added_to(tmp_path):
    def kill(number, made):
        if made.name == "check":
            Pretend.say(
                made.parent / "logs" / "check.log",
                "out: 1 rows; 3 calls, 2 tries more, 500 tokens in, 20 out, 0.5000 paid\n",
            )
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        go(tmp_path, Pretend(kill))
    assert json.loads(note_of(settings(tmp_path), 1, "check").read_text())["spent"]["tokens_in"] == 500
    go(tmp_path, Spoken())
    spent = json.loads(note_of(settings(tmp_path), 1, "check").read_text())["spent"]
    assert (spent["tokens_in"], spent["tokens_out"], spent["paid"]) == (1500, 270, 0.515)
    shutil.rmtree(tmp_path / "out" / "rounds" / "01" / "check")  # what is made anew is paid anew
    go(tmp_path, Spoken())
    assert json.loads(note_of(settings(tmp_path), 1, "check").read_text())["spent"]["tokens_in"] == 1000


PUBLISHED = """
output_dir = "{out}"
[rounds]
count = 2
keep = "last"
stop = "never"
[[pairs]]
file = "published"
[model]
path = "base"
"""


def test_pairs_that_are_there_are_trained_on_without_a_word_being_generated(tmp_path):
    crew = Pretend()
    go(tmp_path, crew, text=PUBLISHED)
    assert crew.ran == ["01/run", "02/run"]
    configs = [(tmp_path / "out" / "rounds" / home / "run.toml").read_text() for home in ("01", "02")]
    assert all('path = "published"' in config for config in configs) and "rounds/01/run/export/hf" in configs[1]
    # Beside pairs that are made, each in its place; what an earlier round made is mixed in, the file is not twice
    crew, text = Pretend(), FILE.replace("[[pairs]]", '[[pairs]]\nfile = "published"\n[[pairs]]')
    shutil.rmtree(tmp_path / "out")
    go(tmp_path, crew, "rounds.mix=0.5", text=text)
    assert crew.ran == [one.replace("pairs", "pairs-2") for one in ALL]
    config = (tmp_path / "out" / "rounds" / "02" / "run.toml").read_text()
    assert [config.count(one) for one in ("published", "02/pairs-2", "01/pairs-2", "0.5")] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "change, told",
    [
        (('"published"', '"published"\nrule = "rlhfv"'), "file = 'published' is there already: nothing else"),
        (("[[pairs]]", '[generate]\ntemperature = 1.0\n[[pairs]]'), r"\[prompts\] path is missing"),
        (("[[pairs]]", '[[feedback]]\nstage = "correct"\n[[pairs]]'), r"\[\[feedback\]\] has no effect without"),
        (
            ("[model]", '[evaluate]\nbench = ["world"]\ndata = "d"\nengine = "x"\n[model]'),
            r"\[evaluate\] engine = 'x': a round's",
        ),
        (("[model]", '[evaluate]\nbench = ["world"]\nfalvour = "x"\n[model]'), "no option 'falvour'; did you mean f"),
    ],
)  # fmt: skip
def test_mistakes_about_pairs_that_are_there_and_about_the_evaluation_are_told(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        settings(tmp_path, PUBLISHED.replace(*change))


def test_what_is_not_there_is_told_before_the_base_is_judged(tmp_path):
    from typer.testing import CliRunner

    for text, told in ((PUBLISHED, "pairs.file: published does not exist"), (FILE, "prompts.path: prompts.jsonl does")):
        (tmp_path / "rounds.toml").write_text(text.format(out=tmp_path / "out", prompts="prompts.jsonl"))
        ended = CliRunner().invoke(app, ["rounds", str(tmp_path / "rounds.toml")])
        assert isinstance(ended.exception, ValueError) and str(ended.exception).startswith(told)
        assert not (tmp_path / "out").exists()


def test_our_own_model_reads_as_it_trains_and_others_as_they_are_told(tmp_path):
    more = JUDGED + '[data]\ntemplate = "vicuna_v1"\naspect = "pad"\n'
    text = FILE.replace('engine = "world"\nmodel = "world"', "", 1).replace(
        'path = "base"', 'path = "base"\ndtype = "float32"'
    )
    steps = list(loop.steps_of(settings(tmp_path, text + more, "evaluate.preset=llava", "evaluate.aspect=crop")))
    said = {step.name: " ".join(step.command) for step in steps if step.round < 2}
    assert "--template vicuna_v1 --aspect pad --dtype float32 --engine local --model base" in said["answers"]
    assert (
        "--template vicuna_v1" in said["eval"] and "--aspect crop" in said["eval"] and "--preset llava" in said["eval"]
    )
    assert not any(word in said["check"] for word in ("--template", "--dtype"))  # the world's
    plain = settings(tmp_path, text + more, "generate.engine=plain").generate.options  # fits images its own way
    assert plain["template"] == "vicuna_v1" and "aspect" not in plain
