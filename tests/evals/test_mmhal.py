"""MMHal-Bench: both official summaries, the official parse with its defects, and the judge's prompt."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.engines.base import Reply
from mmfast.evals.benches.mmhal import KINDS, MmHal, officially, strictly
from tests.make.marking import Marked, Said, asked, golden

BENCH, EXPECTED = MmHal(), golden("mmhal/expected.json")
REPLIES = [row["choices"][0]["message"]["content"] for row in golden("mmhal/replies.json")]
SCRIPT = "template = '''Rate it.\n### Image Contents\n{}\n### Question\n{}\n### Answer\n{}\n### LMM\n{}\n'''\n"


def folder_of(path, count=96, script=True):
    rows = [
        {
            "question_type": KINDS[n % 8],
            "image_id": f"i{n}",
            "image_src": f"https://host.example/a/{n}_o.jpg",
            "image_content": ["Cup", "Table"],
            "question": f"What stands at place {n}?",
            "gt_answer": "A cup.",
        }
        for n in range(count)
    ]
    (path / "mmhal-bench_answer_template.json").write_text(json.dumps(rows))
    if script:
        (path / "eval_gpt_mmhal.py").write_text(SCRIPT)
    return path


def judge():
    return Said(lambda call: REPLIES[int(call.key)])


TEXTS = {str(n): f"Assistant: answer {n}" for n in range(96)}


@pytest.mark.parametrize(("flavour", "name"), [("llava-rlhf", "llava_rlhf_summary"), ("rlaif-v", "rlaifv_summary")])
def test_the_official_summaries(tmp_path, flavour, name):
    told = Marked(BENCH, folder_of(tmp_path), TEXTS, flavour=flavour, judge=judge()).metrics
    lines = [f"Informativeness: {told['informativeness']:.2f}"] if flavour == "rlaif-v" else []
    lines += [
        f"Average score: {told['score']:.2f}",
        f"Hallucination rate: {told['hallucination_rate']:.2f}",
        f"Average score for each question type: {','.join(str(round(told[kind], 2)) for kind in KINDS)}",
    ]
    assert lines == EXPECTED[name]


def test_the_official_parse_with_its_defects():
    assert {reply: officially(reply)[0] for reply in EXPECTED["per_reply_score"]} == EXPECTED["per_reply_score"]
    assert officially("Rating: 10") == (1, True) and officially("**Rating**: 4") == (0, False)


def test_strict_reads_what_was_meant_and_leaves_out_the_rest(tmp_path):
    meant = {"Rating: 10": None, "**Rating**: 4": 4, "rating:4 (no space)": 4, "Rating: 2 ... rating: 4": 4, "": None}
    meant |= {"**Rating: 4**": 4, "Rating: 3.5": None, "Rating: 7": None, "Rating: 5/6": None, "Rating: 5.": 5}
    assert {reply: strictly(reply) for reply in meant} == meant
    found = Marked(BENCH, folder_of(tmp_path), TEXTS, judge=judge(), strict=True)
    scores = [strictly(reply) for reply in REPLIES if strictly(reply) is not None]
    assert found.metrics["score"] == pytest.approx(sum(scores) / len(scores))
    assert found.scoring.counts["unparsed"] == 96 - len(scores) > 0
    unsure = sum(not officially(reply)[1] for reply in REPLIES)
    assert Marked(BENCH, tmp_path, TEXTS, judge=judge()).scoring.counts["unparsed"] == unsure


def test_the_judge_is_asked_as_officially(tmp_path):
    said = judge()
    Marked(BENCH, folder_of(tmp_path), TEXTS, judge=said)
    call = said.calls[3]
    (message,) = call.messages
    assert message["content"] == (
        "Rate it.\n### Image Contents\nCup, Table\n### Question\nWhat stands at place 3?\n### Answer\nA cup.\n"
        "### LMM\nAssistant: answer 3\n"
    )
    assert (call.decode.temperature, call.decode.max_tokens) == (0.0, 2048)
    other = judge()
    Marked(BENCH, tmp_path, TEXTS, judge=other, flavour="rlaif-v")
    assert other.calls[3].messages[0]["content"].endswith("### LMM\nanswer 3\n")
    assert other.calls[3].decode.max_tokens == 512


def test_our_own_words_are_told(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path, script=False), TEXTS, judge=judge())
    assert found.scoring.own_prompt and "eval_gpt_mmhal.py" in found.scoring.notes[0]
    (tmp_path / "eval_gpt_mmhal.py").write_text("template = 'one {}'")
    with pytest.raises(ValueError, match="no template with four places"):
        Marked(BENCH, tmp_path, TEXTS, judge=judge())
    (tmp_path / "eval_gpt_mmhal.py").write_text("def")
    with pytest.raises(ValueError, match="is no Python script"):
        Marked(BENCH, tmp_path, TEXTS, judge=judge())


def test_rows_of_another_order_or_number(tmp_path):
    rows = json.loads((folder_of(tmp_path) / "mmhal-bench_answer_template.json").read_text())
    found = Marked(BENCH, folder_of(tmp_path, count=95), TEXTS, judge=judge())  # DGPref has 95
    assert "95 rows: the official script wants 96" in found.scoring.notes[0]
    (tmp_path / "mmhal-bench_answer_template.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(ValueError, match="row 0: adversarial where MMHal has attribute"):
        asked(BENCH, tmp_path)
    assert asked(BENCH, folder_of(tmp_path))[4].images[0].source.endswith("/4_o.jpg")


def test_a_judge_that_fails_midway(tmp_path):
    failing = Said(lambda call: Reply(key=call.key, finish="error", error="quota") if call.key == "50" else "Rating: 5")
    with pytest.raises(ValueError, match=r"mmhal: the judge failed at 1 of 96 calls \(first: 50: quota\)"):
        Marked(BENCH, folder_of(tmp_path), TEXTS, judge=failing)


def test_calls_that_a_judge_may_fail_at_are_left_out(tmp_path):
    failing = Said(lambda call: Reply(key=call.key, finish="error", error="quota") if call.key == "50" else "Rating: 5")
    failing.allow = 0.1
    found = Marked(BENCH, folder_of(tmp_path), TEXTS, judge=failing)
    assert found.scoring.counts["failed"] == 1 and found.sums["all:asked"] == 95 and found.metrics["score"] == 5
    assert len(found.marks) == 96 and not found.scoring.counts["unparsed"]


@given(st.text())
def test_no_reply_is_too_odd(text):
    assert officially(text)[0] in range(7) and strictly(text) in (None, *range(7))


@pytest.mark.skipif("MMFAST_EVAL_DATA" not in os.environ, reason="official data: MMFAST_EVAL_DATA")
def test_the_official_file():
    questions = asked(BENCH, Path(os.environ["MMFAST_EVAL_DATA"]) / "mmhal")
    assert len(questions) == 96 and len({q.unit for q in questions}) == 96
