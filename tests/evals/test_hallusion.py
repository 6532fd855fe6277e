"""HallusionBench: the official tables, with a judge; VLMEvalKit's yes and no, without."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.engines.base import Reply
from mmfast.evals.benches.hallusion import Hallusion, yes_or_no
from mmfast.evals.hallusion_judge import verdict
from tests.make.marking import Marked, Said, asked, golden

BENCH, INPUTS = Hallusion(), golden("hallusionbench/inputs.json")
SCRIPT = """
def evaluate_by_chatgpt(data, output_entry):
    for sample in tqdm(data):
        prompt = 'Be a teacher. '
        prompt += 'Say it. \\n\\n Question:'
        prompt += sample['question']
        prompt += '\\nReference answer: '
        prompt += sample['gt_answer_details']
        prompt += '\\nPrediction answer:'
        prompt += sample[output_entry]
        prompt += '\\nOutput:'
def check_same_by_chatgpt(data, output_entry):
    for sample in tqdm(data):
        if "same" not in sample.keys():
            prompt = 'Compare. \\n\\n response1:'
            prompt += sample[output_entry]
            prompt += '\\nresponse2: '
            prompt += response2
            prompt += '\\nOutput:'
"""


def folder_of(path, rows=INPUTS["rows"], script=True):
    import json

    (path / "HallusionBench.json").write_text(json.dumps(rows))
    if script:
        (path / "utils.py").write_text(SCRIPT)
    return path


def texts(rows=INPUTS["rows"]):
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return {name: f"the answer {name}" for name in ("_".join(str(row[k]) for k in keys) for row in rows)}


def judge(check=INPUTS["check"], same=INPUTS["same"]):
    def say(call):
        name, _, what = call.key.rpartition(":")
        return (check if what == "check" else same)[name]

    return Said(say)


def test_the_official_tables(tmp_path):
    said = judge()
    found = Marked(BENCH, folder_of(tmp_path), texts(), judge=said)
    expected = golden("hallusionbench/expected.json")
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-14)
    assert {*found.metrics} == {*expected}
    # Only what decides is asked a second time
    again = [call for call in said.calls if call.key.endswith(":same")]
    assert 0 < len(again) < len(INPUTS["rows"]) / 3 and len(said.calls) == len(INPUTS["rows"]) + len(again)


def test_the_official_prompts_at_the_default_temperature(tmp_path):
    said = judge()
    Marked(BENCH, folder_of(tmp_path), texts(), judge=said)
    (message,) = said.calls[0].messages
    row, name = INPUTS["rows"][0], said.calls[0].key.removesuffix(":check")
    assert message["content"] == (
        f"Be a teacher. Say it. \n\n Question:{row['question']}\nReference answer: {row['gt_answer_details']}"
        f"\nPrediction answer:the answer {name}\nOutput:"
    )
    assert said.calls[0].decode.temperature == 1
    same = next(call for call in said.calls if call.key.endswith(":same"))
    name = same.key.removesuffix(":same")
    first = name.split("_")
    first[3] = "0"
    assert same.messages[0]["content"] == (
        f"Compare. \n\n response1:the answer {name}\nresponse2: the answer {'_'.join(first)}\nOutput:"
    )


def test_without_the_script_the_prompt_is_our_own(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path, script=False), texts(), judge=judge())
    assert found.scoring.own_prompt and "no official figure" in found.scoring.notes[0]
    (tmp_path / "utils.py").write_text("x = 'y'")
    with pytest.raises(ValueError, match="no prompt of evaluate_by_chatgpt as known"):
        Marked(BENCH, tmp_path, texts(), judge=judge())


def test_yes_and_no_without_a_judge(tmp_path):
    """Of questions with a figure; the right word makes every score 100, one wrong answer lowers all three."""
    rows = INPUTS["rows"]
    right = {
        name: ("Yes, it is." if row["gt_answer"] == "1" else "No.") for name, row in zip(texts(), rows, strict=True)
    }
    found = Marked(BENCH, folder_of(tmp_path), right, flavour="yes-no")
    assert set(found.metrics.values()) == {100.0} and len(found.marks) == sum(r["visual_input"] != "0" for r in rows)
    name = found.marks[0].id
    one = Marked(BENCH, tmp_path, right | {name: "It is hard to tell"}, flavour="yes-no")
    assert all(one.metrics[k] < 100 for k in ("aAcc", "qAcc", "fAcc")) and one.scoring.counts["neither yes nor no"] == 1
    assert [yes_or_no(t) for t in ("Yes", "yes.", "No/Yes", "not", "No, no!", "yes-no", "")] == [
        "yes",
        "yes",
        "",
        "",
        "no",
        "",
        "",
    ]


def test_a_judge_that_fails_midway(tmp_path):
    def say(call):
        return Reply(key=call.key, finish="error", error="timeout") if call.key.startswith("VS_map_4") else "correct"

    with pytest.raises(ValueError, match=r"the judge failed at \d+ of \d+ calls \(first: VS_map_4"):
        Marked(BENCH, folder_of(tmp_path), texts(), judge=Said(say))
    with pytest.raises(ValueError, match="hallusionbench needs a judge"):
        Marked(BENCH, tmp_path, texts())


def test_calls_that_a_judge_may_fail_at_are_left_out(tmp_path):
    whole = judge()
    fail = "VD_figure_4_1_0:check"
    failing = Said(lambda call: Reply(key=call.key, error="gone") if call.key == fail else whole.say(call))
    failing.allow = 0.1
    found = Marked(BENCH, folder_of(tmp_path), texts(), judge=failing)
    assert len(found.marks) == len(INPUTS["rows"]) - 1 and found.scoring.counts["failed"] == 1


def test_pictures(tmp_path):
    questions = asked(BENCH, folder_of(tmp_path))
    with_figure = next(q for q in questions if q.truth["visual_input"] == "2")
    assert with_figure.images[0].source.endswith(
        "{category}/{subcategory}/{set_id}_{figure_id}.png".format(**with_figure.truth)
    )
    assert not any(q.images for q in questions if q.truth["visual_input"] == "0")
    with pytest.raises(ValueError, match="is the file whole"):
        Marked(BENCH, folder_of(tmp_path, INPUTS["rows"][3:]), texts(), judge=judge())


@given(st.text())
def test_no_answer_is_too_odd(text):
    assert yes_or_no(text) in ("", "yes", "no") and verdict(text) in "012"


@pytest.mark.skipif("MMFAST_EVAL_DATA" not in os.environ, reason="official data: MMFAST_EVAL_DATA")
def test_the_official_file():
    """1,129 questions with replies drawn from Random(11), as the official functions count them."""
    folder = Path(os.environ["MMFAST_EVAL_DATA"]) / "hallusionbench"
    names = [q.id for q in asked(BENCH, folder)]
    rng = random.Random(11)
    check = {name: rng.choice(["correct"] * 5 + ["Incorrect."] * 3 + ["It is unclear", ""]) for name in names}
    same = {name: rng.choice(["same", "different", "Same.", "cannot say"]) for name in names}
    found = Marked(BENCH, folder, dict.fromkeys(names, "x"), judge=judge(check, same))
    assert {name: round(found.metrics[name], 4) for name in REAL} == REAL
    parts = [name.split("_")[0] for name in names]
    assert (parts.count("VD"), parts.count("VS")) == (591, 538)


REAL = {
    "aAcc": 53.6758,
    "qAcc": 20.2198,
    "easy": 45.0549,
    "hard": 46.2791,
    "fAcc": 17.052,
    "LH": 14.7228,
    "VI": 74.761,
    "Mix": 10.5163,
    "VD.fAcc": 17.3913,
    "VS.qAcc": 18.5393,
    "yes_no_bias": 0.0824,
    "fp_ratio": 0.5889,
}
