"""The commands that make data files: they name what they leave out and refuse what they cannot do."""

import json

import pytest
from typer.testing import CliRunner

from mmfast.cli.data import app
from mmfast.data.formats.known import read_records
from tests.make import format_samples as samples

ASKED = {"prompt": "What is this?", "image": None}
ATTRIBUTES = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")


def answered(text, score, **more):
    return ASKED | {"answer": text} | dict.fromkeys(ATTRIBUTES, score) | more


@pytest.fixture
def command(tmp_path):
    out = tmp_path / "out.jsonl"

    def run(*args):
        result = CliRunner().invoke(app, [*map(str, args), "-o", str(out)])
        if result.exception:
            assert isinstance(result.exception, ValueError), result.exception
            assert not out.exists()
            return str(result.exception), []
        found = list(read_records(out))
        out.unlink()
        return result.output, found

    return run


BAD = [
    (answered("no number", 3, Helpfulness=None), "no score Helpfulness (it has Coherence, Complexity, Correctness, "),
    (answered("a word", 3, Helpfulness="high"), "no score Helpfulness"),
    (answered("not a number", 3, Helpfulness=float("nan")), "no score Helpfulness"),
    ({"prompt": "What?"}, "a scored answer needs a question"),
    ("{", "not valid JSON"),
]
COMMANDS = {
    "pairs": ("pairs", "--rule", "mllm_dpo"),
    "sft": ("sft", "--score", "Helpfulness + Correctness"),
    "steerlm": ("steerlm",),
    "hindsight": ("steerlm", "--hindsight"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_rows_end_the_command_or_are_left_out_and_named(name, rows, command):
    good = [answered("A mug.", 4), answered("A cat.", 1)]
    path = rows("s.jsonl", [good[0], *(row for row, _ in BAD), good[1]])
    verb, *options = COMMANDS[name]
    _, want = command(verb, rows("good.jsonl", good), *options)
    said, _ = command(verb, path, *options)
    assert said.startswith(f"s.jsonl:1: {BAD[0][1]}")
    said, found = command(verb, path, *options, "--on-error", "drop")
    assert [r.chosen for r in found] == [r.chosen for r in want] and found
    assert "left out: 5 rows (3 score, 1 format, 1 json)" in said.splitlines()
    for number, (_, message) in enumerate(BAD, 1):
        assert f"left out: s.jsonl:{number}: {message}" in said
    said, _ = command(verb, rows("bad.jsonl", [BAD[0][0]]), *options, "--on-error", "drop")
    assert said.startswith(
        "nothing is left to write, so out.jsonl is not made; 1 rows are bad, the first: bad.jsonl:0: no"
    )
    assert command(verb, path, *options, "--on-error", "skip")[0] == "--on-error: 'skip' is not raise or drop"


def test_numbers_written_as_text_are_scores(rows, command):
    path = rows("s.jsonl", [answered("A mug.", "4", id="7"), answered("A cat.", " 1.0 "), answered("2", "3")])
    _, found = command("pairs", path, "--rule", "mllm_dpo")
    assert [(r.chosen[0]["content"], r.scores) for r in found] == [("A mug.", {"chosen": 12, "rejected": 3})]
    _, found = command("sft", path)
    assert found[2].chosen[0]["content"] == "2" and found[0].scores == dict.fromkeys(ATTRIBUTES, 4.0)


def test_judgements_that_do_not_fit_their_facts_are_left_out(rows, command):
    claims = [
        {"claims": [["c", True]], "facts": ["c"]},
        {"claims": [["c", False]]},
        {"claims": [["c", False]], "facts": []},
    ]
    path = rows("s.jsonl", [ASKED | {"answer": f"Answer {i}."} | c for i, c in enumerate(claims)])
    said, found = command("pairs", path, "--rule", "rlaifv", "--on-error", "drop")
    assert len(found) == 1 and "s.jsonl:2: 1 judged claims for 0 facts [claims]" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--rule", "mllm_dpo", "--aspects", "object"),
            "--aspects belongs to DGPref's expert scores: it needs --captions",
        ),
        (("--rule", "mllm_dpo", "--sum"), "--sum belongs to DGPref's expert scores"),
        (("--rule", "mllm_dpo", "--option", "image=x"), "--option belongs to DGPref's expert scores"),
        (("--rule", "sima", "--margin", "1"), "--rule sima takes a critic's verdicts"),
        (("--rule", "sima", "--sum"), "--sum belongs to DGPref's expert scores"),
    ],
)
def test_an_option_that_does_nothing_is_refused(options, said, rows, command):
    assert command("pairs", rows("s.jsonl", [answered("A mug.", 4)]), *options)[0].startswith(said)


def test_idle_options_of_sft_and_steerlm_are_refused(rows, command):
    path = rows("s.jsonl", [answered("A mug.", 4)])
    assert command("sft", path, "--ties", "random")[0] == "--ties needs --score"
    assert command("sft", path, "--minimum", "1")[0] == "--minimum needs --score"
    assert command("steerlm", path, "--margin", "1")[0] == "--margin needs --hindsight"


def test_sima_on_another_file_makes_none(rows, command):
    path = rows("s.jsonl", [answered("A mug.", 4)] * 3)
    said, _ = command("pairs", path, "--rule", "sima")
    assert said.startswith(
        "nothing is left to write, so out.jsonl is not made; 3 rows are bad, the first: s.jsonl:0: none"
    )


def test_sima_can_stop_at_a_missing_verdict(rows, command):
    path = rows("c.jsonl", [samples.SIMA["critic"][0] | {"rank_result": "neither"}])
    assert (
        "c.jsonl:0: the critic's reply holds no" in command("pairs", path, "--rule", "sima", "--on-error", "raise")[0]
    )


def test_nothing_is_written_over_what_is_read(rows, tmp_path):
    pairs, scored = rows("p.jsonl", samples.TRL), rows("s.jsonl", [answered("A mug.", 4)])
    (tmp_path / "link.jsonl").symlink_to(pairs)
    before = pairs.read_bytes(), scored.read_bytes()
    for call in (
        ("convert", pairs, pairs, "--share", "0.5"),
        ("convert", pairs, tmp_path / "link.jsonl"),
        ("convert", tmp_path / "link.jsonl", pairs),
        ("convert", tmp_path, pairs),
        ("convert", pairs, pairs, "--to", "rows"),
        ("pairs", scored, "--rule", "mllm_dpo", "-o", scored),
        ("sft", scored, "-o", scored),
        ("steerlm", scored, "-o", scored),
    ):
        result = CliRunner().invoke(app, list(map(str, call)))
        assert isinstance(result.exception, ValueError), call
        assert str(result.exception).endswith("is what is read: write to another file")
    assert (pairs.read_bytes(), scored.read_bytes()) == before


@pytest.mark.parametrize("to", ["mllm_dpo", "sima", "rlhfv", "rlaifv", "dgpref"])
def test_sft_rows_become_no_pairs_of_equal_sides(to, rows, tmp_path):
    """A format of pairs has no place for them: they are not carried, and said to be."""
    one = {"id": "1", "prompt": "What?", "chosen": "A mug."}
    target = tmp_path / ("o.pkl" if to == "dgpref" else "o.jsonl")
    call = ["convert", str(rows("p.jsonl", [one, one | {"id": "2", "rejected": "A cat."}])), str(target), "--to", to]
    result = CliRunner().invoke(app, call)
    assert "not carried: the whole record: it has no rejected side (of 1 records)" in result.output
    assert "1 records" in result.output.splitlines()
    (tmp_path / "prompts.txt").write_text("What?\n")
    (record,) = read_records(target)
    assert record.rejected[0]["content"] == "A cat."
    target.unlink()
    result = CliRunner().invoke(app, ["convert", str(rows("s.jsonl", [one])), str(target), "--to", to])
    assert "nothing is left to write" in str(result.exception) and "no rejected side" in str(result.exception)
    assert not target.exists() and json.loads((tmp_path / "s.jsonl").read_text()) == one
