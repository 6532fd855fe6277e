"""MT-Bench: FastChat's printed tables, single and pairwise; prompts, temperatures, and a noise that is seen."""

import io
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmfast.engines.base import Reply
from mmfast.evals.benches.mtbench import MtBench, MtBenchNoise
from mmfast.evals.mtbench_judge import rated, strictly, winner
from tests.make.marking import Marked, Said, asked, golden, lines

BENCH, INPUTS, EXPECTED = MtBench(), golden("mtbench/inputs.json"), golden("mtbench/expected.json")
CATEGORIES = ("writing", "math", "stem", "extraction", "coding")


def folder_of(path, rows, prompts=True, baseline=False):
    """Questions of our own for the question ids of some judgments."""
    names = list(dict.fromkeys(row["question_id"] for row in rows))
    questions = [
        {"question_id": n, "category": CATEGORIES[k % 5], "turns": [f"Ask {n}?", f"And {n}?"]}
        for k, n in enumerate(names)
    ]
    lines(path / "question.jsonl", questions)
    answers = [{"question_id": n, "choices": [{"index": 0, "turns": [f"Ref {n}.", f"Ref {n} too."]}]} for n in names]
    lines(path / "reference_gpt-4.jsonl", answers)
    if baseline:
        turns = [{"question_id": n, "choices": [{"turns": [f"Base {n}.", f"Base {n} too."]}]} for n in names]
        lines(path / "baseline.jsonl", turns)
    if prompts:
        templates = []
        for kind, names in (("single", ("single-v1", "single-math-v1")), ("pair", ("pair-v2", "pair-math-v1"))):
            for name in names:
                reference = "R:{ref_answer_1}|" if "math" in name else ""
                one = "A:{answer}" if kind == "single" else "A:{answer_a}|B:{answer_b}"
                two = (
                    "{answer_1}/{answer_2}"
                    if kind == "single"
                    else "{answer_a_1}/{answer_a_2}|B:{answer_b_1}/{answer_b_2}"
                )
                more = reference.replace("1}", "1}/{ref_answer_2}")
                templates += [
                    {"name": name, "system_prompt": f"S {name}", "prompt_template": f"Q:{{question}}|{reference}{one}"},
                    {
                        "name": f"{name}-multi-turn",
                        "system_prompt": f"S2 {name}",
                        "prompt_template": f"Q:{{question_1}}/{{question_2}}|{more}A:{two}",
                    },
                ]
        lines(path / "judge_prompts.jsonl", templates)
    return path


def texts(rows):
    return {str(row["question_id"]): (f"Own {row['question_id']}.", f"Own {row['question_id']} too.") for row in rows}


@pytest.mark.parametrize("model", ["a", "b"])
def test_the_official_averages(tmp_path, model):
    rows = [row for row in INPUTS["single"] if row["model"] == model]
    scores = {f"{row['question_id']}:{row['turn']}": row["score"] for row in rows}
    judge = Said(lambda call: "no rating" if scores[call.key] == -1 else f"[[1]] of [[{scores[call.key]}]]"[10:])
    found = Marked(BENCH, folder_of(tmp_path, rows), texts(rows), judge=judge)
    printed = [line.split() for line in EXPECTED["single_stdout"]]
    expected = {"turn 1": None, "turn 2": None, "average": None}
    for words in printed:
        if words[:1] == [model]:
            expected[f"turn {words[1]}" if len(words) == 3 else "average"] = words[-1]
    assert {name: f"{found.metrics[name]:.6f}" for name in expected} == expected
    assert found.scoring.counts["unparsed"] == sum(score == -1 for score in scores.values()) > 0


def test_the_official_win_rates(tmp_path):
    rows = INPUTS["pairwise"]
    verdict = {"model_1": "A", "model_2": "B", "tie": "C"}, {"model_1": "B", "model_2": "A", "tie": "C"}
    said = {}
    for row in rows:
        for order, name in enumerate(("g1_winner", "g2_winner"), 1):
            mark = verdict[order - 1].get(row[name])
            said[f"{row['question_id']}:{row['turn']}:{order}"] = f"So [[{mark}]]" if mark else "I cannot say"
    found = Marked(
        BENCH,
        folder_of(tmp_path, rows, baseline=True),
        texts(rows),
        judge=Said(lambda c: said[c.key]),
        flavour="pairwise",
    )
    name, *numbers = EXPECTED["pairwise_all_stdout"][4].split()
    assert name == "a" and [found.sums[what] for what in ("win", "loss", "tie")] == [float(n) for n in numbers[:3]]
    rates = [found.metrics[what] for what in ("win_rate", "loss_rate", "win_rate_adjusted")]
    assert [f"{rate:.6f}" for rate in rates] == [f"{float(n):.6f}" for n in numbers[3:]]


def test_the_official_ratings():
    told = {
        reply: -1 if rating == "raises SyntaxError" else rating for reply, rating in EXPECTED["rating_parse"].items()
    }
    assert {reply: -1 if rated(reply) is None else rated(reply) for reply in told} == told
    assert strictly("[[ 5 ]]") == 5 and strictly("[[9/10]]") == 9 and strictly("a[0] is fine") is None
    assert strictly("[[2]] no, [[3]]") == 3 and strictly("[[11]]") is None
    assert rated(f"[[{'9' * 400}]]") is None
    assert winner("[[B]] and [[A]]") == "A" and winner("[[D]]") is None


def test_the_judge_is_asked_as_officially(tmp_path):
    rows = [row for row in INPUTS["single"] if row["model"] == "a"]
    judge = Said(lambda call: "[[5]]")
    Marked(BENCH, folder_of(tmp_path, rows, baseline=True), texts(rows), judge=judge)
    calls = {call.key: call for call in judge.calls}
    assert len(calls) == 2 * len({row["question_id"] for row in rows})
    contents = {key: [message["content"] for message in call.messages] for key, call in calls.items()}
    assert contents["81:1"] == ["S single-v1", "Q:Ask 81?|A:Own 81."]
    assert contents["82:1"] == ["S single-math-v1", "Q:Ask 82?|R:Ref 82.|A:Own 82."]
    assert contents["82:2"] == [
        "S2 single-math-v1",
        "Q:Ask 82?/And 82?|R:Ref 82./Ref 82 too.|A:Own 82./Own 82 too.",
    ]
    assert (calls["81:1"].decode.temperature, calls["81:1"].decode.max_tokens) == (0.0, 2048)
    pairs = Said(lambda call: "[[C]]")
    Marked(BENCH, tmp_path, texts(rows), judge=pairs, flavour="pairwise")
    contents = {call.key: call.messages[1]["content"] for call in pairs.calls}
    assert contents["81:1:1"] == "Q:Ask 81?|A:Own 81.|B:Base 81."
    assert contents["81:2:2"] == "Q:Ask 81?/And 81?|A:Base 81./Base 81 too.|B:Own 81./Own 81 too."


def test_temperatures_by_category(tmp_path):
    rows = [{"question_id": n} for n in range(5)]
    told = {q.truth["category"]: q.decode["temperature"] for q in asked(BENCH, folder_of(tmp_path, rows))}
    assert told == {"writing": 0.7, "math": 0.0, "stem": 0.1, "extraction": 0.0, "coding": 0.0}
    assert all(q.turns == (f"Ask {q.id}?", f"And {q.id}?") and not q.images for q in asked(BENCH, tmp_path))


def test_noise_is_a_picture_of_its_own(tmp_path):
    """The same for a question each time, another for each question, and no placeholder in the text."""
    rows = [{"question_id": n} for n in range(2)]
    one, other = asked(MtBenchNoise(), folder_of(tmp_path, rows))
    pixels = np.asarray(Image.open(io.BytesIO(one.images[0].data)))
    assert pixels.shape == (336, 336, 3) and abs(pixels.mean() - 127.5) < 1 and "<image>" not in one.turns[0]
    again = asked(MtBenchNoise(), tmp_path)[0]
    assert again.images[0].data == one.images[0].data != other.images[0].data


def test_our_own_words_have_every_place(tmp_path):
    rows = [{"question_id": n} for n in range(2)]
    judge = Said(lambda call: "[[5]]")
    found = Marked(BENCH, folder_of(tmp_path, rows, prompts=False, baseline=True), texts(rows), judge=judge)
    assert found.scoring.own_prompt
    content = next(call for call in judge.calls if call.key == "1:2").messages[1]["content"]
    assert all(
        text in content for text in ("Ask 1?", "And 1?", "Ref 1.", "Ref 1 too.", "Own 1.", "Own 1 too.", "[[5]]")
    )
    Marked(BENCH, tmp_path, texts(rows), judge=Said(lambda call: "[[A]]"), flavour="pairwise")


def test_what_is_refused(tmp_path):
    rows = [{"question_id": n} for n in range(2)]
    judge = Said(lambda call: "[[5]]")
    folder = folder_of(tmp_path, rows)
    with pytest.raises(ValueError, match=r"pairwise needs a baseline's answers .*FastChat"):
        Marked(BENCH, folder, texts(rows), judge=judge, flavour="pairwise")
    with pytest.raises(ValueError, match="the answer to question 0 has fewer turns"):
        Marked(BENCH, folder, texts(rows) | {"0": "one turn"}, judge=judge)
    failing = Said(lambda call: Reply(key=call.key, error="gone") if call.key == "1:1" else "[[5]]")
    with pytest.raises(ValueError, match=r"failed at 1 of 4 calls \(first: 1:1: gone"):
        Marked(BENCH, folder, texts(rows), judge=failing)
    lines(folder / "judge_prompts.jsonl", [{"name": "single-v1", "system_prompt": "", "prompt_template": "{what}"}])
    with pytest.raises(ValueError, match=r"single-v1: its template asks for 'what'"):
        Marked(BENCH, folder, texts(rows), judge=judge)
    lines(folder / "reference_gpt-4.jsonl", [{"question_id": 0, "choices": [{"turns": ["a", "b"]}]}])
    with pytest.raises(ValueError, match=r"no answer to question 1 \(math\)"):
        asked(BENCH, folder)


def test_calls_that_a_judge_may_fail_at_are_left_out(tmp_path):
    rows = [{"question_id": n} for n in range(2)]
    failing = Said(lambda call: Reply(key=call.key, error="gone") if call.key.startswith("1:1") else "[[5]]")
    failing.allow = 0.5
    found = Marked(BENCH, folder_of(tmp_path, rows, baseline=True), texts(rows), judge=failing)
    assert found.sums["average:asked"] == 3 and found.scoring.counts["failed"] == 1
    assert Marked(BENCH, tmp_path, texts(rows), judge=failing, flavour="pairwise").scoring.counts["failed"] == 2


@given(st.text())
def test_no_reply_is_too_odd(text):
    for reply in (text, f"[[{text}]]"):
        assert rated(reply) is None or rated(reply) >= 0
        assert strictly(reply) is None or 1 <= strictly(reply) <= 10
        assert winner(reply) in (None, "A", "B", "C")


@pytest.mark.skipif("MMFAST_EVAL_DATA" not in os.environ, reason="official data: MMFAST_EVAL_DATA")
def test_the_official_files():
    folder, judge = Path(os.environ["MMFAST_EVAL_DATA"]) / "mtbench", Said(lambda call: "Rating: [[7]]")
    found = Marked(BENCH, folder, {str(n): ("one", "two") for n in range(81, 161)}, judge=judge)
    assert len(judge.calls) == 160 and found.metrics["average"] == 7 and not found.scoring.notes
    by = defaultdict(int)
    for question in found.questions:
        by[question.decode["temperature"]] += 1
    assert by == {0.7: 20, 0.1: 20, 0.0: 40}
