"""What is said while a run goes on and at its end: the page of now and then, and where everything is."""

import shlex

import pytest
from typer.main import get_command

from mmfast.cli.app import app
from mmfast.config import dump
from mmfast.training import following
from mmfast.training.following import EVERY, SHARE, Following
from tests.make.tiny_run import make_config

ROW = {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.25, "learning_rate": 1e-6}
HELD_OUT = {"eval/loss": 0.6, "eval/rewards/accuracies": 0.7, "eval/chair.chair_i": 12.5, "eval/chair.chair_s": 30.0}


@pytest.fixture
def clock(monkeypatch):
    return [1000.0]


@pytest.fixture
def pages(monkeypatch, clock):
    """The times at which a page was written, each taking `pages.takes` seconds; `pages.error` is what it raises."""

    class Pages(list):
        takes, error = 0.0, None

    made = Pages()

    def write(runs, *, live):
        assert live
        made.append(clock[0])
        clock[0] += made.takes
        if made.error:
            raise made.error

    monkeypatch.setattr(following, "report", write)
    return made


def make(tmp_path, clock, *, main=True, total=100, **changes):
    config = make_config(tmp_path, "model", "data.jsonl", **{"log.progress": True} | changes)
    (tmp_path / "run").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / "config.toml").write_text(dump(config))
    how = {"main": main, "show": True, "began": clock[0], "clock": lambda: clock[0]}
    return Following(tmp_path / "run", config.model_dump(), total, 0, **how)


def test_the_page_is_written_once_a_minute_at_most(tmp_path, clock, pages):
    told = make(tmp_path, clock)
    for step in range(1, 301):
        clock[0] += 1.0
        told.row(step, ROW)
    assert pages == [1000.0 + EVERY * n for n in range(1, 6)]


def test_a_page_that_takes_long_is_written_less_often(tmp_path, clock, pages):
    told, pages.takes = make(tmp_path, clock, total=3000), 6.0
    for step in range(1, 2001):
        clock[0] += 1.0
        told.row(step, ROW)
    assert len(pages) == 4 and sum(6.0 for _ in pages) <= SHARE * (clock[0] - 1000.0) + 6.0


def test_a_page_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, clock, pages, capsys):
    told, pages.error = make(tmp_path, clock), OSError(28, "No space left on device")
    for step in range(1, 301):
        clock[0] += 1.0
        told.row(step, ROW)
    said = capsys.readouterr().err
    assert len(pages) == 5 and said.count("warning: report.html is not written: OSError: [Errno 28] No space left") == 1


def test_what_is_measured_and_what_warns_are_lines_of_their_own(tmp_path, clock, pages, capsys):
    told = make(tmp_path, clock)
    for step in (1, 2, 3):
        told.row(step, ROW | {"rewards/margins": 50.0})
    told.row(3, HELD_OUT)
    told.sampled(3, [{"answer": "one two"}] * 8)
    told.sampled(6, [{"answer": "one two three four"}] * 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2] == "step 3/100, about 0 s left  loss 0.5  acc 0.75  margin 50"
    assert lines[3].startswith("warning: step 3: the margins run away: 50,")
    assert lines[4:6] == ["step 3, held out: loss 0.6, accuracy 0.7", "step 3, chair: chair_i 12.5, chair_s 30"]
    assert lines[6].startswith("warning: step 6: the sampled answers went from 2 to 4 words") and len(lines) == 7


def test_ranks_but_the_first_say_nothing(tmp_path, clock, pages, capsys):
    told = make(tmp_path, clock, main=False)
    clock[0] += 100
    told.row(1, ROW)
    told.say("something")
    told.part("held out")(1, 1)
    assert capsys.readouterr().err == "" and not pages


def ended(told, values, capsys):
    told.end(values)
    return capsys.readouterr().err.splitlines()


def test_the_closing_block_says_how_it_went_where_it_is_and_what_is_next(tmp_path, clock, pages, capsys):
    told, run = make(tmp_path, clock, total=3), tmp_path / "run"
    for step in (1, 2, 3):
        told.row(step, ROW | {"rewards/margins": 50.0})
    (run / "export" / "hf").mkdir(parents=True)
    (run / "export" / ".hf.tmp").mkdir()
    clock[0] += 200.0
    capsys.readouterr()
    assert ended(told, ROW | HELD_OUT, capsys) == [
        "finished: step 3, 3 of them in this start, 3 min",
        "  training   loss 0.5, accuracy 0.75, margin 0.25",
        "  held out   loss 0.6, accuracy 0.7",
        "  chair      chair_i 12.5, chair_s 30",
        "  warnings   margins (step 3)",
        f"  exported   {run}/export/hf",
        f"  report     {run}/report.html",
        f"  next       mmfast eval {run}/export/hf --bench NAME --data DIR --out {run}/benchmarks",
    ]


@pytest.mark.parametrize(
    ("exported", "command"), [(["hf", "peft"], "eval"), (["peft"], "merge"), ([], "export"), (["llava"], "")]
)
def test_the_next_command_is_one_that_there_is(exported, command, tmp_path, clock, pages, capsys):
    told = make(tmp_path / "a run", clock)
    for name in exported:
        (tmp_path / "a run" / "run" / "export" / name).mkdir(parents=True)
    found = [line.split(maxsplit=1)[1] for line in ended(told, ROW, capsys) if line.startswith("  next ")]
    assert len(found) == bool(command)
    for line in found:
        name, named, *arguments = shlex.split(line)
        assert (name, named) == ("mmfast", command)
        one = get_command(app).commands[named]
        one = one.commands["run"] if named == "eval" else one  # what `mmfast eval MODEL` means
        assert one.make_context(named, arguments).args == []  # which raises for an option that there is not
