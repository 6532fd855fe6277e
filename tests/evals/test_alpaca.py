"""AlpacaEval: the package's win rates, its length control, its order of answers, its parse of replies."""

import importlib.util
import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.engines.base import Reply
from mmfast.evals.alpaca_judge import ranked, weighed
from mmfast.evals.benches.alpaca import Alpaca, _switched
from tests.make.marking import GOLDEN, Marked, Said, asked, golden

BENCH, ROWS, EXPECTED = Alpaca(), golden("alpaca/annotations.json"), golden("alpaca/expected.json")
TURBO, DAVINCI = "alpaca_eval_gpt4_baseline.json", "alpaca_eval.json"
CHATML = (
    "<|im_start|>system\n Rank. \n<|im_end|>\n"
    "<|im_start|>user\nI: {instruction}\n1: {output_1}\n2: {output_2}\n<|im_end|>"
)


def folder_of(path, name=TURBO, rows=ROWS, prompts=True):
    """Answers of the lengths of the golden annotations."""
    told = [{"instruction": row["instruction"], "output": "b" * row["len_1"], "generator": "base"} for row in rows]
    (path / name).write_text(json.dumps(told))
    if prompts:
        (path / "alpaca_eval.txt").write_text(CHATML)
        (path / "alpaca_eval_clf.txt").write_text(CHATML)
    return path


def texts(rows=ROWS):
    return {str(n): "m" * row["len_2"] for n, row in enumerate(rows)}


def judged(rows=ROWS):
    """Says what makes the golden preferences, whichever answer stands first."""

    def say(call):
        preference = rows[int(call.key)]["preference"]
        if preference is None or math.isnan(preference):
            return Reply(key=call.key, text="?")
        preference = 1.5 if preference == 0 else preference
        if _switched(rows[int(call.key)]["instruction"]):
            preference = 3 - preference
        first = 2 - preference  # the first name's share
        labels = {name: math.log(p) for name, p in (("m", first), ("M", 1 - first)) if p > 0}
        return Reply(key=call.key, text="m", labels=labels)

    return Said(say)


def test_the_official_win_rate(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), texts(), judge=judged(), flavour="2")
    expected = EXPECTED["length_controlled_v1"]
    for name in ("win_rate", "standard_error", "discrete_win_rate"):
        assert found.metrics[name] == pytest.approx(expected[name], rel=1e-9)
    assert (found.sums["wins"], found.sums["draws"], found.sums["kept"]) == (
        expected["n_wins"],
        expected["n_draws"],
        expected["n_total"],
    )
    assert found.scoring.counts["unparsed"] == len(ROWS) - expected["n_total"] > 0


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_the_official_length_control(tmp_path):
    shutil.copy(GOLDEN / "alpaca" / "df_gamed_synthetic.csv", tmp_path / "df_gamed.csv")
    found = Marked(BENCH, folder_of(tmp_path), texts(), judge=judged(), flavour="length-controlled")
    for ours, theirs in (("length_controlled_winrate",) * 2, ("lc_standard_error",) * 2):
        assert found.metrics[ours] == pytest.approx(EXPECTED["length_controlled_v1"][theirs], rel=1e-9)


def test_length_control_needs_its_file_and_library(tmp_path, monkeypatch):
    folder_of(tmp_path)
    with pytest.raises(ValueError, match=r"has no df_gamed.csv: .*tatsu-lab/alpaca_eval"):
        Marked(BENCH, tmp_path, texts(), judge=judged(), flavour="length-controlled")
    (tmp_path / "df_gamed.csv").write_text("preference,index\n1,0\n")
    with pytest.raises(ValueError, match="lacks columns of"):
        Marked(BENCH, tmp_path, texts(), judge=judged(), flavour="length-controlled")
    whole = (GOLDEN / "alpaca" / "df_gamed_synthetic.csv").read_text()
    (tmp_path / "df_gamed.csv").write_text("".join(whole.splitlines(keepends=True)[:30]))
    with pytest.raises(ValueError, match="does not know the difficulty of every instruction"):
        Marked(BENCH, tmp_path, texts(), judge=judged(), flavour="length-controlled")
    (tmp_path / "df_gamed.csv").write_text(whole)
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ValueError, match="is fitted by scikit-learn: "):
        Marked(BENCH, tmp_path, texts(), judge=judged(), flavour="length-controlled")


def test_the_judge_is_asked_as_officially(tmp_path):
    """The order is drawn by the instruction, from the seed that the package uses; equal answers need no call."""
    judge = judged()
    Marked(BENCH, folder_of(tmp_path), texts() | {"3": "b" * ROWS[3]["len_1"]}, judge=judge, flavour="2")
    calls = {call.key: call for call in judge.calls}
    assert "3" not in calls and len(calls) == len(ROWS) - 1
    assert calls["0"].labels == ("m", "M")
    assert (calls["0"].decode.temperature, calls["0"].decode.max_tokens) == (1.0, 1)
    firsts = {name: "1: m" in call.messages[1]["content"] for name, call in calls.items()}
    assert firsts == {name: _switched(ROWS[int(name)]["instruction"]) for name in calls}
    assert 10 < sum(firsts.values()) < len(ROWS) - 10
    assert calls["0"].messages[0] == {"role": "system", "content": "Rank."}
    # random.Random("is_switched_outputs" + instruction + "0").choices([False, True], k=1)[0], by hand
    assert [_switched(f"i{n}") for n in range(8)] == SWITCHED


def test_the_ranking_of_version_1(tmp_path):
    first, second = (f"[{{'model': 'model_1', 'rank': {a}}}, {{'model': 'model_2', 'rank': {3 - a}}}]" for a in (1, 2))
    told = {
        first: 1,
        second: 2,
        "[{'model': 'model_1', 'rank': 3}]": None,
        "": None,
        "[]": None,
        "no": None,
        "{'a': 1}": None,
    }
    assert {text: ranked(text) for text in told} == told
    judge = Said(lambda call: first)
    found = Marked(BENCH, folder_of(tmp_path, DAVINCI), texts(), judge=judge, flavour="1")
    shown_first = sum(_switched(row["instruction"]) for row in ROWS)
    assert found.metrics["win_rate"] == pytest.approx(100 * shown_first / len(ROWS))
    assert judge.calls[0].decode.max_tokens == 100 and judge.calls[0].labels == ()


def test_names_that_the_server_did_not_show():
    logs = {"m": math.log(0.3), "M": math.log(0.1)}
    assert weighed(Reply(key="", labels=logs)) == pytest.approx(2 - 0.75)
    assert weighed(Reply(key="", labels=logs, bounded=("M",))) == 1.0  # as a probability of nothing
    assert weighed(Reply(key="", labels=logs, bounded=("m",))) == 2.0
    assert weighed(Reply(key="", labels=logs, bounded=("m", "M"))) is None and weighed(Reply(key="")) is None
    assert weighed(Reply(key="", labels={"m": -math.inf, "M": -math.inf})) is None


def test_what_is_refused_and_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"has no alpaca_eval.json or alpaca_eval_gpt4_baseline.json: .*huggingface.co"
    ):
        asked(BENCH, tmp_path)
    folder_of(tmp_path, prompts=False)
    with pytest.raises(ValueError, match=r"has no alpaca_eval.json: flavour 1 compares with it"):
        Marked(BENCH, tmp_path, texts(), judge=judged(), flavour="1")
    judge = judged()
    found = Marked(BENCH, tmp_path, texts(), judge=judge, flavour="2")
    assert found.scoring.own_prompt
    content = judge.calls[0].messages[1]["content"]
    assert ROWS[0]["instruction"] in content and "b" * ROWS[0]["len_1"] in content
    folder_of(tmp_path, DAVINCI, [ROWS[0] | {"instruction": "other"}, *ROWS[1:]])
    with pytest.raises(ValueError, match="row 0: another instruction than in"):
        asked(BENCH, tmp_path)
    (tmp_path / DAVINCI).unlink()
    (tmp_path / "alpaca_eval_clf.txt").write_text("no chat")
    with pytest.raises(ValueError, match="not a system and a user message in ChatML"):
        Marked(BENCH, tmp_path, texts(), judge=judged(), flavour="2")


def test_calls_that_a_judge_may_fail_at_are_no_draws(tmp_path):
    whole = judged()
    failing = Said(lambda call: Reply(key=call.key, error="gone") if call.key == "1" else whole.say(call))
    failing.allow = 0.1
    found = Marked(BENCH, folder_of(tmp_path), texts(), judge=failing, flavour="2")
    assert found.told("preference")["1"] is None and found.scoring.counts["failed"] == 1


@given(st.text())
def test_no_reply_is_too_odd(text):
    assert ranked(text) in (None, 1.0, 2.0)


SWITCHED = [False, False, True, False, True, False, False, True]
