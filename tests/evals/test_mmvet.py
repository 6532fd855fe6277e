"""MM-Vet: the official tables of three runs, call by call."""

import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.engines.base import Reply
from mmfast.evals.benches.mmvet import AGAIN, MmVet, grade
from tests.make.marking import Marked, Said, asked, golden

BENCH, INPUTS, EXPECTED = MmVet(), golden("mmvet/inputs.json"), golden("mmvet/expected.json")


def folder_of(path, script=True):
    (path / "mm-vet.json").write_text(json.dumps(INPUTS["metadata"]))
    if script:
        (path / "mm-vet_evaluator.py").write_text('prompt = """Examples\nhere\n"""\n')
    return path


def scripted():
    """The official evaluator's calls of each question in their order; a sixth try's reply is never looked at."""
    waiting = defaultdict(list)
    for name, *call in INPUTS["judge_calls"]:
        waiting[name].append(call)

    def say(call):
        name = call.key.split(":")[0]
        temperature, reply, again = waiting[name].pop(0)
        assert (call.decode.temperature, call.messages[0]["content"].endswith(AGAIN)) == (temperature, again)
        assert call.decode.max_tokens == 3 and len(call.messages) == 1
        return reply

    return Said(say), waiting


def test_the_official_tables(tmp_path):
    judge, waiting = scripted()
    found = Marked(BENCH, folder_of(tmp_path), INPUTS["answers"], judge=judge, runs=3)
    assert not any(waiting.values())
    assert {name: told["score"] for name, told in EXPECTED["grades"].items()} == found.told("scores")
    for name, figure in EXPECTED["cap_score_csv"].items():
        if name != "runs":
            assert str(round(found.metrics[name], 1)) == figure
    for names, figure in EXPECTED["cap_int_csv"].items():
        if names not in ("note", "runs", "total", "std"):
            sets = "+".join(sorted(names.split("|")))
            assert str(round(found.metrics[sets if "+" in sets else f"only {sets}"], 1)) == figure
    runs = [f"np.float64({round(found.metrics[f'run{n}'], 1)})" for n in (1, 2, 3)]
    assert f"[{', '.join(runs)}]" == EXPECTED["cap_score_csv"]["runs"]


def test_the_row(tmp_path):
    judge, _ = scripted()
    Marked(BENCH, folder_of(tmp_path), INPUTS["answers"], judge=judge, runs=3)
    assert judge.calls[0].messages[0]["content"] == f"Examples\nhere\n\n{EXPECTED['row_format']} "
    assert {call.decode.seed for call in judge.calls} == {0, 1, 2}  # else a record would answer the second run


def test_five_tries_then_nothing(tmp_path):
    judge = Said(lambda call: "hm")
    found = Marked(BENCH, folder_of(tmp_path), INPUTS["answers"], judge=judge, runs=1)
    first = [call for call in judge.calls if call.key.startswith("v1_0:")]
    assert [call.decode.temperature for call in first] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert found.metrics["total"] == found.metrics["std"] == 0 and found.scoring.counts["unparsed"] == 24


def test_what_is_refused_and_told(tmp_path):
    with pytest.raises(ValueError, match=r"has no mm-vet.json: .*CC BY-NC"):
        asked(BENCH, tmp_path)
    found = Marked(BENCH, folder_of(tmp_path, script=False), INPUTS["answers"], judge=Said(lambda call: "1.0"))
    assert found.scoring.own_prompt and found.scoring.counts["judge calls"] == 5 * 24
    assert found.metrics["total"] == 100
    with pytest.raises(ValueError, match="runs = 0"):
        Marked(BENCH, tmp_path, INPUTS["answers"], judge=Said(lambda call: "1"), runs=0)
    failing = Said(lambda call: Reply(key=call.key, error="down") if call.key == "v1_7:1:0" else "0.5")
    with pytest.raises(ValueError, match=r"failed at 1 of 24 calls \(first: v1_7:1:0: down"):
        Marked(BENCH, tmp_path, INPUTS["answers"], judge=failing)
    assert asked(BENCH, tmp_path)[0].images[0].source.endswith("images/v1_0.png")


@given(st.text())
def test_no_reply_is_too_odd(text):
    assert grade(text) is None or 0 <= grade(text) <= 1
