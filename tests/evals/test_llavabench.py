"""LLaVA-Bench: LLaVA's and RLHF-V's summaries of the same reviews, the parse, and the judge's messages."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.engines.base import Reply
from mmfast.evals.benches.llavabench import SYSTEM, LlavaBenchCoco, LlavaBenchWild, officially, strictly
from tests.make.marking import Marked, Said, asked, golden, lines

COCO, WILD, EXPECTED = LlavaBenchCoco(), LlavaBenchWild(), golden("llavabench/expected.json")
REVIEWS = golden("llavabench/inputs.json")["reviews"]
TEXTS = {str(review["question_id"]): f"answer {review['question_id']}" for review in REVIEWS}


def folder_of(path, rule=True):
    """In the wild: captions as lists or texts, questions of the reviews' categories."""
    questions = [
        {
            "question_id": r["question_id"],
            "image": f"{r['question_id'] // 3:03}.jpg",
            "text": f"What is {r['question_id']}?",
            "category": r["category"].removeprefix("llava_bench_"),
        }
        for r in REVIEWS
    ]
    images = dict.fromkeys(q["image"] for q in questions)
    context = [{"image": n, "caption": ["One.", "Two."] if k % 2 else "Only one."} for k, n in enumerate(images)]
    lines(path / "questions.jsonl", questions)
    lines(path / "context.jsonl", context)
    lines(path / "answers_gpt4.jsonl", [{"question_id": q["question_id"], "text": "GPT-4 says."} for q in questions])
    if rule:
        rules = {r["category"]: {"role": "Helper", "prompt": f"Judge {r['category']}."} for r in REVIEWS}
        (path / "rule.json").write_text(json.dumps(rules))
    return path


def judge():
    said = {str(review["question_id"]): review["content"] for review in REVIEWS}
    return Said(lambda call: said[call.key])


def test_llavas_summary(tmp_path):
    told = Marked(WILD, folder_of(tmp_path), TEXTS, judge=judge()).metrics
    names = [name for name in told if "." not in name]
    found = [
        f"{n} {round(told[n], 1)} {round(told[f'{n}.reference'], 1)} {round(told[f'{n}.model'], 1)}" for n in names
    ]
    assert found == EXPECTED["llava_summary_stdout"][1:-2]


def test_rlhf_vs_summary(tmp_path):
    told = Marked(WILD, folder_of(tmp_path), TEXTS, judge=judge(), flavour="rlhf-v").metrics
    expected = dict(line.split(" ", 1) for line in EXPECTED["rlhfv_summary_stdout"][:-1])
    names = [name for name in told if "." not in name]
    means = {n: [round(told[f"{n}.{who}"] / 10, 3) for who in ("reference", "model")] for n in names}
    assert {n: f"{means[n]} {round(told[n], 1)}" for n in names} == expected


def test_the_official_parse():
    parsed = {reply: list(officially(reply) or (-1, -1)) for reply in EXPECTED["parse_score"]}
    assert parsed == EXPECTED["parse_score"] and officially("nan 3") is None and officially("1e999 3") is None
    assert strictly("9, 6\nx") == (9, 6) and strictly("8  7") == (8, 7) and strictly("Assistant 1: 8") is None
    assert strictly("Assistant 1: 8/10, Assistant 2: 7/10") == (8, 7) and strictly("12 9") is None


def test_the_judge_is_asked_as_officially(tmp_path):
    said = judge()
    found = Marked(WILD, folder_of(tmp_path), TEXTS, judge=said)
    system, user = said.calls[0].messages
    assert system == {"role": "system", "content": SYSTEM} and not found.scoring.own_prompt
    assert user["content"] == (
        "[Context]\nOnly one.\n\n[Question]\nWhat is 0?\n\n[Helper 1]\nGPT-4 says.\n\n[End of Helper 1]\n\n"
        "[Helper 2]\nanswer 0\n\n[End of Helper 2]\n\n[System]\nJudge llava_bench_conv.\n\n"
    )
    assert "[Context]\nOne.\nTwo.\n\n[Question]" in said.calls[3].messages[1]["content"]
    assert (said.calls[0].decode.temperature, said.calls[0].decode.max_tokens) == (0.2, 1024)
    other = judge()
    Marked(WILD, tmp_path, TEXTS, judge=other, flavour="rlhf-v")
    assert other.calls[0].decode.max_tokens == 180


def test_coco_has_boxes_and_other_names(tmp_path):
    lines(tmp_path / "qa90_questions.jsonl", [{"question_id": 5, "image": "a.jpg", "text": "Q", "category": "conv"}])
    row = {"image": "a.jpg", "captions": ["C1", "C2"], "instances": [{"category": "cup", "bbox": [0.1, 0.2, 0.5, 1.0]}]}
    lines(tmp_path / "caps_boxes_coco2014_val_80.jsonl", [row])
    lines(tmp_path / "qa90_gpt4_answer.jsonl", [{"question_id": 5, "text": "R"}])
    (tmp_path / "rule_llava.json").write_text(json.dumps({"conv": {"role": "Assistant", "prompt": "P"}}))
    said = Said(lambda call: "8 6")
    found = Marked(COCO, tmp_path, {"5": "A"}, judge=said)
    assert "[Context]\nC1\nC2\n\ncup: [0.1, 0.2, 0.5, 1.0]\n\n[Question]" in said.calls[0].messages[1]["content"]
    assert found.metrics["conv"] == found.metrics["all"] == 75.0
    (tmp_path / "rule_llava.json").write_text(json.dumps({"detail": {"role": "Assistant", "prompt": "P"}}))
    with pytest.raises(ValueError, match="has no prompt for conv"):
        Marked(COCO, tmp_path, {"5": "A"}, judge=said)
    lines(tmp_path / "qa90_gpt4_answer.jsonl", [{"question_id": 6, "text": "R"}])
    with pytest.raises(ValueError, match=r"has nothing for question 5 \(a.jpg\)"):
        asked(COCO, tmp_path)


def test_failures(tmp_path):
    """LLaVA counts a failed parse as -1 in both means; ours leaves it out; both tell how many."""
    found = Marked(WILD, folder_of(tmp_path, rule=False), TEXTS, judge=judge())
    failed = sum(officially(review["content"]) is None for review in REVIEWS)
    assert found.scoring.counts["unparsed"] == failed > 0 and found.scoring.own_prompt
    strict = Marked(WILD, tmp_path, TEXTS, judge=judge(), strict=True)
    assert strict.metrics["all.reference"] > found.metrics["all.reference"]
    failing = Said(lambda call: Reply(key=call.key, error="gone") if call.key == "0" else "8 7")
    failing.allow = 0.1
    assert Marked(WILD, tmp_path, TEXTS, judge=failing).sums["all:asked"] == len(REVIEWS) - 1
    with pytest.raises(ValueError, match=r"llava-bench-wild needs a judge: give --judge .officially gpt-4-0314"):
        Marked(WILD, tmp_path, TEXTS)


@given(st.text())
def test_no_reply_is_too_odd(text):
    assert officially(text) is None or len(officially(text)) == 2
    assert strictly(text) is None or all(1 <= score <= 10 for score in strictly(text))


@pytest.mark.skipif("MMFAST_EVAL_DATA" not in os.environ, reason="official data: MMFAST_EVAL_DATA")
def test_the_official_files():
    said = Said(lambda call: "9 8")
    folder = Path(os.environ["MMFAST_EVAL_DATA"]) / "llavabench_coco"
    found = Marked(COCO, folder, {str(n): "a" for n in range(90)}, judge=said)
    assert {name: found.sums[f"{name}:asked"] for name in ("all", "conv", "detail", "complex")} == {
        "all": 90,
        "conv": 30,
        "detail": 30,
        "complex": 30,
    }
    assert len({mark.unit for mark in found.marks}) == 30 and not found.scoring.notes
