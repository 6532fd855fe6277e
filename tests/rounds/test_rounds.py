"""Rounds: which commands run, in which order, and again after a kill, a deletion or another config."""

from __future__ import annotations

import json
import shutil

import pytest
from rich.console import Console
from typer.main import get_command

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.rounds import choice, loop, report
from mmfast.rounds.launch import Failed, Interrupted
from mmfast.rounds.settings import MAKERS, STAGES, load
from mmfast.rounds.steps import note_of
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
path = "prompts.jsonl"
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
data = "world"
best = "world.chair_s"
"""
ONE = ("answers", "decompose", "check", "grade", "pairs", "run")
ALL = [f"{home}/{name}" for home in ("01", "02") for name in ONE]


def settings(folder, text=FILE, *overrides):
    file = folder / "rounds.toml"
    file.write_text(text.format(out=folder / "out"))
    return load(file, overrides, KNOWN)


def go(folder, crew, *overrides, text=FILE):
    asked = settings(folder, text, *overrides)
    return loop.run(asked, crew, QUIET, report=report.write)


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


def test_a_moved_folder_is_the_same(tmp_path):
    go(tmp_path, Pretend())
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    crew = Pretend()
    text = FILE.replace("{out}", str(tmp_path / "elsewhere"))
    file = tmp_path / "moved.toml"
    file.write_text(text)
    loop.run(load(file, (), KNOWN), crew, QUIET, report=report.write)
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
        (('path = "prompts.jsonl"', ""), r"\[prompts\] path is missing"),
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


def test_keeping_the_best_needs_a_benchmark(tmp_path):
    with pytest.raises(ValueError, match=r"need \[evaluate\] bench and best"):
        settings(tmp_path, FILE.replace('"never"', '"no gain"'))


def test_a_metric_that_is_not_measured_is_told_before_a_round_is_spent(tmp_path):
    crew = Pretend()
    with pytest.raises(ValueError, match=r"best = 'world.chair_x': world has chair_i, chair_s"):
        go(tmp_path, crew, text=FILE + JUDGED.replace("chair_s", "chair_x"))
    assert crew.ran == ["00/eval"]
    with pytest.raises(ValueError, match="its benchmark is not among bench"):
        settings(tmp_path, FILE + JUDGED.replace("world.chair_s", "pope.f1"))


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


def test_the_page_has_the_benchmark_the_pairs_and_the_time(tmp_path):
    go(tmp_path, Pretend(), text=FILE + JUDGED)
    page = (tmp_path / "out" / "rounds.html").read_text()
    assert "chair_s" in page and "round 1, pairs" in page and "what it said" in page and "beside the base" in page


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
        (("[model]", '[evaluate]\nbench = ["world"]\nengine = "x"\n[model]'), r"\[evaluate\]: engine is given by"),
        (("[model]", '[evaluate]\nbench = ["world"]\nfalvour = "x"\n[model]'), "no option 'falvour'; did you mean f"),
    ],
)  # fmt: skip
def test_mistakes_about_pairs_that_are_there_and_about_the_evaluation_are_told(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        settings(tmp_path, PUBLISHED.replace(*change))


def test_what_is_not_there_is_told_before_the_base_is_judged(tmp_path):
    from typer.testing import CliRunner

    for text, told in ((PUBLISHED, "pairs.file: published does not exist"), (FILE, "prompts.path: prompts.jsonl does")):
        (tmp_path / "rounds.toml").write_text(text.format(out=tmp_path / "out"))
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
