"""RefoMB: verdicts, score, both passes, and the prompts out of the official scripts."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.engines.base import Reply
from mmfast.evals.benches.refomb import RefoMb, verdict
from tests.make.marking import Marked, Said, asked, golden, lines

BENCH, INPUTS, EXPECTED = RefoMb(), golden("refomb/inputs.json"), golden("refomb/expected.json")
SCRIPT = """
SYSTEM_MSG = '''
Be fair {{really}}.
'''
def construct_gpt4_query(text_instruction, image_descriptsion, modelA_answer, modelB_answer):
    prompt = f'''
    {SYSTEM_MSG}

    [D]
    {image_descriptsion}
    [Q]
    {text_instruction}
    [A]
    {modelA_answer}
    [B]
    {modelB_answer}
    '''
    return prompt
"""
AGAIN = """
SYSTEM_MSG = 'Once more.'
def construct_gpt4_query(review_text):
    prompt = f'''{SYSTEM_MSG} [R] {review_text}'''
    return prompt
"""


def folder_of(path, count=10, scripts=True):
    rows = [
        {
            "image_url": f"https://host.example/{n // 2}.jpg",
            "question": f"What is at {n}?",
            "description": f"Toy {n} is there {{so}}.",
            "type": "OCR" if n % 2 else "Coarse Perception",
            "answer": f"GPT says {n}.",
        }
        for n in range(count)
    ]
    lines(path / "gpt4v_RefoMB_dev_0521.jsonl", rows)
    if scripts:
        (path / "eval_RefoMB_p0.py").write_text(SCRIPT)
        (path / "eval_hallucination.py").write_text(AGAIN)
    return path


TEXTS = {str(n): f"Ours {n}<|endoftext|>" for n in range(10)}
LETTERS = {-1: "[[A]]", 1: "[[B]]", 0: "[[C]]"}


def test_the_official_verdicts_and_score(tmp_path):
    told = {reply: None if isinstance(score, str) else score for reply, score in EXPECTED["post_process"].items()}
    assert {reply: verdict("", reply) for reply in told} == told
    judge = Said(lambda call: LETTERS[INPUTS["scores"][int(call.key)]])
    found = Marked(BENCH, folder_of(tmp_path), TEXTS, judge=judge)
    assert found.metrics["score"] == EXPECTED["score"] and f"{found.metrics['score']:.3f}" == "0.550"
    kinds = [found.metrics["score.OCR"], found.metrics["score.Coarse Perception"]]
    assert found.metrics["score"] == pytest.approx(sum(kinds) / 2)


def test_the_judge_is_asked_as_officially(tmp_path):
    judge = Said(lambda call: "[[B]] since")
    Marked(BENCH, folder_of(tmp_path), TEXTS, judge=judge, flavour="hallucination")
    first, again = judge.calls[0], judge.calls[10]
    assert first.messages[1]["content"] == (
        "\n    \nBe fair {{really}}.\n\n\n    [D]\n    Toy 0 is there {so}.\n    [Q]\n    What is at 0?\n    [A]\n"
        "    GPT says 0.\n    [B]\n    Ours 0<EOT>\n    "
    )
    assert (first.decode.temperature, first.decode.max_tokens) == (1e-5, 2048)
    assert again.messages[1]["content"] == "Once more. [R] [[B]] since" and again.decode.temperature == 0


def test_both_passes(tmp_path):
    judge = Said(lambda call: "[[C]]" if call.key.endswith(":again") else "[[B]]")
    told = Marked(BENCH, folder_of(tmp_path), TEXTS, judge=judge, flavour="hallucination").metrics
    assert told["score"] == 1.0 and told["hallucination"] == 0.5 and told["hallucination.OCR"] == 0.5


def test_no_verdict_is_asked_for_five_times_and_left_out(tmp_path):
    judge = Said(lambda call: "no" if call.key.startswith("4") else "[[C]]")
    found = Marked(BENCH, folder_of(tmp_path), TEXTS, judge=judge)
    assert [call.decode.seed for call in judge.calls if call.key.startswith("4")] == [0, 1, 2, 3, 4]
    assert found.sums["score:asked"] == 9 and found.scoring.counts["unparsed"] == 1 and found.metrics["score"] == 0.5


def test_what_is_refused_and_told(tmp_path):
    with pytest.raises(ValueError, match=r"has no gpt4v_RefoMB_\*.jsonl: .*RLAIF-V"):
        asked(BENCH, tmp_path)
    judge = Said(lambda call: "[[C]]")
    found = Marked(BENCH, folder_of(tmp_path, scripts=False), TEXTS, judge=judge, flavour="hallucination")
    assert found.scoring.own_prompt and len(found.scoring.notes) == 2
    assert "Toy 0 is there {so}." in judge.calls[0].messages[1]["content"]
    (tmp_path / "eval_RefoMB_p0.py").write_text("SYSTEM_MSG = 'x'")
    with pytest.raises(ValueError, match="no prompt of construct_gpt4_query as known"):
        Marked(BENCH, tmp_path, TEXTS, judge=judge)
    (tmp_path / "eval_RefoMB_p0.py").unlink()
    failing = Said(lambda call: Reply(key=call.key, error="gone") if call.key == "7" else "[[A]]")
    with pytest.raises(ValueError, match=r"failed at 1 of 10 calls \(first: 7: gone"):
        Marked(BENCH, tmp_path, TEXTS, judge=failing)


@given(st.text())
def test_no_reply_is_too_odd(text):
    assert verdict("", text) in (None, -1, 0, 1)


@pytest.mark.skipif("MMFAST_EVAL_DATA" not in os.environ, reason="official data: MMFAST_EVAL_DATA")
def test_the_official_file():
    questions = asked(BENCH, Path(os.environ["MMFAST_EVAL_DATA"]) / "refomb")
    assert len(questions) == 99 and len({q.truth["kind"] for q in questions}) == 8
