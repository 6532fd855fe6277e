"""`mmfast correct --engine world`: the annotation corrects in people's place, into the folder that people leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.feedback.corrected import Folder
from mmfast.rounds import loop
from mmfast.rounds.settings import MAKERS, STAGES, load
from mmfast.rounds.steps import round_of
from mmfast.world.corrections import corrected, items_of, repairs
from mmfast.world.dataset import WorldSpec, read_lines, read_scenes, write_world
from mmfast.world.grammar import errors
from tests.make.answer_cases import captions
from tests.rounds.crews import Inside

ROWS = 160


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    spec = WorldSpec(seed=7, base=4, pairs=4, groups=1, group_size=2, test=40)
    return write_world(tmp_path_factory.mktemp("w") / "world", spec)


@pytest.fixture(scope="module")
def answers(world, tmp_path_factory):
    return captions(world, tmp_path_factory.mktemp("a") / "answers", samples=4, noise=0.7)


def ran(*arguments, fails: str = "") -> str:
    ended = CliRunner().invoke(app, list(map(str, arguments)))
    if fails:
        assert fails in str(ended.exception) + ended.output, (ended.exception, ended.output)
        return ""
    assert ended.exit_code == 0, (ended.exception, ended.output)
    return ended.output


def corrected_folder(answers: Path, out: Path, world: Path, *more) -> tuple[Folder, str]:
    told = ran("correct", answers, "--out", out, "--engine", "world", "--model", world, *more)
    return Folder(out), told


def of(folder: Folder, world: Path) -> list[tuple[str, str, object]]:
    """(answer, corrected, scene) of each card that is done."""
    scenes = {scene.name: scene for scene in read_scenes(world)}
    return [
        (next(iter(one.shown.answers.values())), one.row["corrected"], scenes[Path(one.shown.images[0]).stem])
        for one in folder.done
    ]


def test_every_answer_is_corrected_as_the_grammar_has_it(answers, world, tmp_path):
    folder, told = corrected_folder(answers, tmp_path / "work", world)
    done = of(folder, world)
    assert len(done) == ROWS and f"{ROWS} of {ROWS} cards done" in told and folder.manifest["by"]
    assert json.loads((folder.path / "manifest.json").read_text())["complete"] is True
    changed = 0
    for text, after, scene in done:
        assert after == corrected(text, repairs(text, scene)) and not any(errors(after, scene).values())
        changed += text != after
    assert 0.4 * ROWS < changed < 0.8 * ROWS
    kinds = folder.report()["segments"]
    assert set(kinds) <= {"object", "count", "position", "attribute", "text"} and len(kinds) >= 4


def test_its_pairs_are_made_by_the_writers_of_peoples_work(answers, world, tmp_path):
    folder, _ = corrected_folder(answers, tmp_path / "work", world)
    ran("corrected", folder.path, "--pairs", tmp_path / "pairs.jsonl", "--rlhfv", tmp_path / "rlhfv.jsonl")
    ran("data", "pairs", folder.path, "--rule", "rlhfv", "--answers", answers, "-o", tmp_path / "rule.jsonl")
    wrong = [(a, b) for a, b, _ in of(folder, world) if a != b]
    for name in ("pairs.jsonl", "rule.jsonl"):
        rows = read_lines(tmp_path / name)
        said = [tuple(_text(row[side]) for side in ("rejected", "chosen")) for row in rows]
        assert sorted(said) == sorted(wrong) and len(rows) > 50
        for row, (old, new) in zip(rows, said, strict=True):
            assert row["segments"] and all(
                0 <= a < b <= len(text) for side, text in (("rejected", old), ("chosen", new)) for a, b, *_ in
                row["segments"].get(side, [])
            )  # fmt: skip


def _text(messages) -> str:
    content = messages[0]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_a_share_is_drawn_and_the_same_command_goes_on(answers, world, tmp_path):
    folder, told = corrected_folder(answers, tmp_path / "work", world, "--share", "0.25")
    assert len(folder.done) == round(0.25 * ROWS) and "beyond --share" in told
    journal = (folder.path / "actions.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    (folder.path / "actions.jsonl").write_bytes(b"".join(lines[:10]) + lines[10][:20])  # killed in a write
    again, _ = corrected_folder(answers, tmp_path / "work", world, "--share", "0.25")
    assert [one.row | {"seconds": 0} for one in again.done] == [one.row | {"seconds": 0} for one in folder.done]
    assert len((folder.path / "actions.jsonl").read_bytes().splitlines()) == len(lines)
    other, _ = corrected_folder(answers, tmp_path / "other", world, "--share", "0.25", "--seed", "1")
    assert {one.shown.key for one in other.done} != {one.shown.key for one in folder.done}


def test_noise_overlooks_claims_and_invents_none(answers, world, tmp_path):
    folder, _ = corrected_folder(answers, tmp_path / "work", world, "--noise", "0.5")
    left = before = 0
    for text, after, scene in of(folder, world):
        left, before = left + sum(errors(after, scene).values()), before + sum(errors(text, scene).values())
        if not any(errors(text, scene).values()):
            assert after == text
    assert 0.3 * before < left < 0.7 * before
    blind, _ = corrected_folder(answers, tmp_path / "blind", world, "--noise", "1")
    assert all(text == after for text, after, _ in of(blind, world))
    ran("correct", answers, "-o", tmp_path / "work", "--engine", "world", "-m", world, fails="made otherwise")


def test_what_it_cannot_read_is_skipped_with_the_reason(answers, world, tmp_path):
    rows = read_lines(next(answers.glob("rows-*.jsonl")))
    rows[0]["answer"], rows[1]["answer"] = "A lovely picture of shapes.", rows[1]["answer"][:-1]
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "rows-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    (odd / "manifest.json").write_bytes((answers / "manifest.json").read_bytes())
    folder, told = corrected_folder(odd, tmp_path / "work", world)
    assert len(folder.done) == 10
    assert folder.report()["skipped"] == {"the world's grammar does not read this text as a caption": 2}
    assert "skipped: the world's grammar does not read" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "local", "--model", "m"], "--engine local: it corrects nothing"),
        (["--engine", "word", "--model", "m"], "unknown engine 'word'"),
        (["--model", "m"], "--model has no effect without --engine world"),
        (["--noise", "0.1"], "--noise has no effect without --engine world"),
        (["--engine", "world", "--model", "nowhere"], "needs a world's folder"),
        (["--engine", "world", "--model", "WORLD", "--noise", "2"], "a probability is from 0 to 1"),
        (["--engine", "world", "--model", "WORLD", "--task", "mark"], "no effect on --task mark"),
        (["--engine", "world", "--model", "WORLD", "--annotator", "bo"], "nobody else corrects there"),
        (["--share", "0"], "--share: it must be above 0"),
        (["--seed", "3"], "--seed has no effect"),
    ],
)
def test_mistakes_are_told_before_a_page_opens(answers, world, tmp_path, options, told):
    given = [str(world) if one == "WORLD" else one for one in options]
    ran("correct", answers, "--out", tmp_path / "work", *given, fails=told)
    assert not (tmp_path / "work" / "cards.jsonl").exists()


ROUNDS = """
output_dir = "{out}"
[rounds]
count = 1
keep = "last"
stop = "never"
[prompts]
path = "{world}/test.jsonl"
[generate]
engine = "world"
model = "{world}"
noise = 0.8
temperature = 1.0
n = 2
[[feedback]]
stage = "correct"
engine = "world"
model = "{world}"
share = 0.5
seed = 3
[[pairs]]
rule = "rlhfv"
of = "correct"
[model]
path = "base"
"""


def test_a_round_takes_corrections_of_a_share_of_answers_as_a_source(world, tmp_path):
    file = tmp_path / "rounds.toml"
    file.write_text(ROUNDS.format(out=tmp_path / "out", world=world))
    root = get_command(app)
    asked = load(file, [], {name: options_of(root, name) for name in ("generate", *STAGES, *MAKERS)})
    crew = Inside()
    for step in round_of(asked, 1, "base", None):
        if step.name != "run":
            loop.take(step, crew, Console(quiet=True))
    pairs = read_lines(tmp_path / "out" / "rounds" / "01" / "pairs.jsonl")
    assert 15 < len(pairs) < 60
    assert all(items_of(_text(row["chosen"])) and _text(row["chosen"]) != _text(row["rejected"]) for row in pairs)
