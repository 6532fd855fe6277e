"""Long work is told as it goes: lines without a terminal, and a part that was there already is complete."""

import io
import re
import sys

import pytest
from rich.console import Console

from mmfast.progress import EVERY, Parts, Steps, lasting


def lines(clock, tell):
    out = io.StringIO()
    with Parts(Console(file=out, force_terminal=False, width=40), clock=clock) as parts:
        tell(parts)
    return out.getvalue().splitlines()


def test_without_a_terminal_lines_come_while_the_work_goes_on():
    now = [0.0]

    def tell(parts):
        follow = parts.part("base model: learns to describe pictures")
        for step in range(101):
            follow(step, 100)
            now[0] += 1.0
        follow(100, 100)

    said = lines(lambda: now[0], tell)
    assert len(said) == 100 // int(EVERY) + 1
    assert said[0] == "base model: learns to describe pictures: 15/100, 15 s, about 85 s left"
    assert said[-1] == "base model: learns to describe pictures: 100/100, 100 s"


def test_a_part_that_was_there_already_is_complete():
    assert lines(lambda: 0.0, lambda parts: parts.part("world")(10, 10)) == ["world: 10/10, 0 s"]


def test_a_terminal_of_80_columns_shows_the_whole_line_to_the_time_left():
    out = io.StringIO()
    with Parts(Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})) as parts:
        parts.part("base model: learns flawed captions")(1000, 1000)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split("\r")[-1].strip()
    assert re.fullmatch(r"base model: learns flawed captions \S+ 1000/1000 +0:00:00 left 0:00:00", last)


def shown(out):
    """The lines that were drawn, without what moves the cursor."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def on_a_terminal(monkeypatch, columns):
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", out)
    for name, value in {"COLUMNS": str(columns), "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return out


@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_a_line_keeps_to_the_terminal_with_the_time_left_and_whole_numbers(columns, monkeypatch):
    out = on_a_terminal(monkeypatch, columns)
    steps = Steps(10000, 0, show=True)
    numbers = {"loss": 0.6931, "rewards/accuracies": 0.5312, "rewards/margins": 0.1439, "tokens_per_s": 11430.4}
    steps.update(3210, numbers)
    steps.close()
    line = shown(out)[-1]
    assert len(line) <= columns and re.match(r"train \S+ +3210/10000 0:00:00 left \S+", line)
    items = ["loss 0.6931", "acc 0.5312", "margin 0.1439", "tok/s 11,430"]
    found = re.split(r"left \S+ ?", line)[1]
    assert found in ["  ".join(items[:n]) for n in range(5)] and ("loss" in found) == (columns > 60)
    assert ("tok/s" in found) == (columns > 100)


def test_what_is_said_is_not_broken_nor_read_as_markup(monkeypatch):
    out = on_a_terminal(monkeypatch, 80)
    steps = Steps(10, 0, show=True)
    line = "warning: [bold]a/path/" + "x" * 90 + "/:smile:.html"
    steps.say(line)
    steps.close()
    assert line in shown(out)


def test_a_dumb_terminal_gets_lines(monkeypatch):
    out = on_a_terminal(monkeypatch, 80)
    monkeypatch.setenv("TERM", "dumb")
    Steps(10, 0, show=True).update(10, {"loss": 1.0})
    assert out.getvalue() == "step 10/10  loss 1\n"


def test_a_fleeting_part_is_told_only_where_it_takes_long():
    now = [0.0]

    def tell(parts):
        quick, slow, unknown = (parts.part(name, fleeting=True) for name in ("quick", "slow", "unknown"))
        quick(5, 5)
        for step in range(1, 5):
            now[0] += 10.0
            slow(step, 4)
            unknown(step, 0)

    said = lines(lambda: now[0], tell)
    assert said == ["slow: 2/4, 20 s, about 20 s left", "unknown: 2, 20 s", "slow: 4/4, 40 s", "unknown: 4, 40 s"]


def test_a_fleeting_bar_goes_when_it_is_done(monkeypatch):
    out = on_a_terminal(monkeypatch, 80)
    with Steps(10, 0, show=True) as steps:
        follow = steps.part("held out", fleeting=True)
        follow(1, 2)
        assert len(steps.bars.tasks) == 2
        follow(2, 2)
        assert [task.visible for task in steps.bars.tasks] == [True, False]
    assert shown(out)[-1].startswith("train ")


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (7300, "2 h 02 min")])
def test_times_are_told_in_words(seconds, said):
    assert lasting(seconds) == said


def test_steps_without_a_terminal_say_how_long_it_will_still_take(capsys):
    now = [0.0]
    steps = Steps(110, 10, show=True, clock=lambda: now[0])
    now[0] = 600.0
    steps.update(60, {"loss": 0.5})
    steps.update(110, {"loss": 0.5})
    assert capsys.readouterr().err == "step 60/110, about 10 min left  loss 0.5\nstep 110/110  loss 0.5\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_steps_numbers_are_shown_with_or_without_a_terminal(terminal, monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    steps = Steps(10, 2, show=True)
    steps.update(3, {"loss": 0.69314, "rewards/accuracies": 0.5, "lr": 1.0})
    steps.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").strip().split("\n")[-1].strip()
    assert re.search(r"3/10\b.*loss 0.6931  acc 0.5$", last) and last.startswith("train" if terminal else "step 3/10")


def test_a_bar_that_is_not_asked_for_is_not_drawn():
    out = io.StringIO()
    with Parts(Console(file=out, force_terminal=True), show=False) as parts:
        parts.part("examples")(3, 3, "1 dropped")
    with Parts(Console(file=out, force_terminal=False), show=False) as parts:
        parts.part("examples")(3, 3, "1 dropped")
    assert out.getvalue() == ""


def test_large_numbers_are_written_out(capsys):
    Steps(1, 0, show=True).update(1, {"loss": 0.693147, "tokens_per_s": 11430.4})
    assert capsys.readouterr().err == "step 1/1  loss 0.6931  tok/s 11,430\n"
