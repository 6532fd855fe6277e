"""docs/papers.md: what it shows can be said to the command, and it claims no run that nobody has made."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import pytest
from typer.main import get_command

from mmfast.cli.app import app
from mmfast.config import load as load_training
from mmfast.reproduce import paper
from mmfast.training.recipes import FOLDER

PAGE = FOLDER.parent / "docs" / "papers.md"
RESULTS = FOLDER.parent / "bench" / "results" / "reproduce.jsonl"
ROOT = get_command(app)
# (section, cells)
ROWS = [
    (part.partition("\n")[0], [cell.strip() for cell in line.strip().strip("|").split(" | ")])
    for part in PAGE.read_text().partition("## Their command lines")[2].split("\n### ")[1:]
    for line in part.splitlines()
    if line.startswith("| ") and not line.startswith("| theirs")
]


def commands_of(cell):
    """The commands of a cell, each as words."""
    return [shlex.split(text) for text in re.findall(r"`(mmfast [^`]+)`", cell)]


OURS = [words for _, row in ROWS for words in commands_of(row[-1])]


def test_each_row_says_what_becomes_of_their_command():
    assert len(ROWS) > 35
    for _, row in ROWS:
        verdict = row[1]
        assert verdict == "same" or re.match(r"replaced (by .+, because .+|likewise)|not supported", verdict), row
        assert verdict != "same" or commands_of(row[-1]), row


@pytest.mark.parametrize("words", OURS, ids=[" ".join(words)[:60] for words in OURS])
def test_our_command_is_understood(words):
    if words[1] == "train":
        load_training(FOLDER.parent / words[2], words[3:])
        return
    found, rest = ROOT, words[1:]
    while getattr(found, "commands", None):
        found, *rest = found.commands[rest[0]], *rest[1:]
    found.make_context(words[1], rest)
    # Presets, rules and experts are names that there are
    names = {"--preset", "--rule", "--experts", "--bench", "--flavour", "--wording", "--reading"}
    for option, value in pairwise(rest):
        if option in names:
            known(words, option, value)


def known(words, option, value):
    from mmfast.engines.presets import planned
    from mmfast.evals.answering import PRESETS
    from mmfast.evals.benches import bench

    if words[1] == "eval" and option == "--preset":
        assert value in PRESETS
    elif words[1] == "generate" and option == "--preset":
        planned(value)
    elif option == "--bench":
        [bench(name) for name in value.split(",")]
    elif option in ("--flavour", "--wording"):
        one = bench(words[words.index("--bench") + 1])
        assert value in (one.flavours if option == "--flavour" else one.wordings)


def test_an_unknown_option_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        ROOT.commands["generate"].make_context("generate", ["a.jsonl", "--presett", "sima"])


def test_it_says_that_nobody_has_run_what_has_no_row():
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    run = {row["paper"] for row in rows if row["scale"] == 1}  # a share is a trial
    assert ("Nobody has run this yet" in PAGE.read_text()) == (not run & set(paper.names()))
    assert all(f"`{name}`" in PAGE.read_text() for name in paper.names())
