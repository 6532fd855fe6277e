"""Long work is told as it goes: lines without a terminal, and a part that was there already is complete."""

import io
import re
import sys

import pytest
from rich.console import Console

from mmfast.progress import EVERY, Parts, Steps, bars


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
    with Parts(Console(file=out, force_terminal=True, width=80)) as parts:
        parts.part("base model: learns flawed captions")(1000, 1000)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split("\r")[-1].strip()
    assert re.fullmatch(r"base model: learns flawed captions \S+ 1000/1000 +0:00:00 left 0:00:00", last)


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
    assert re.search(r"3/10 .*loss 0.6931  acc 0.5$", last) and last.startswith("train" if terminal else "step 3/10")


def test_a_bar_that_is_not_asked_for_is_not_drawn():
    out = io.StringIO()
    with bars(Console(file=out, force_terminal=True), show=False) as bar:
        bar.update(bar.add_task("examples", total=3), advance=3, note="1 dropped")
    assert out.getvalue() == ""


def test_large_numbers_are_written_out(capsys):
    Steps(9, 0, show=True).update(1, {"loss": 0.693147, "tokens_per_s": 11430.4})
    assert capsys.readouterr().err == "step 1/9  loss 0.6931  tok/s 11,430\n"
