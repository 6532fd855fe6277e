"""TextVQA, VQAv2, VizWiz: both normalisers to the letter, both metrics to the digit, prompts and uploads."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.base import Data
from mmfast.evals.benches.textvqa import TextVqa
from mmfast.evals.benches.vqa import VizWiz, VqaV2
from mmfast.evals.vqa_text import evalai, m4c, official, vqaeval
from tests.make.marking import Marked, asked, golden, lines

INPUTS, EXPECTED = golden("vqa/inputs.json"), golden("vqa/expected.json")
SHORT = "\nAnswer the question using a single word or phrase."


def textvqa_of(path):
    items = INPUTS["textvqa_items"]
    rows = [
        {"question_id": n, "image_id": f"img{n // 4}", "question": f"what IS {n}?", "answers": item["gt_answers"]}
        for n, item in enumerate(items)
    ]
    (path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    return path, {str(n): item["pred_answer"] for n, item in enumerate(items)}


def vqav2_of(path, answer_type="other"):
    items = INPUTS["textvqa_items"]
    rows = [{"question_id": n, "image_id": n // 4, "question": f"What is {n}?"} for n in range(len(items))]
    people = [
        {
            "question_id": n,
            "answer_type": answer_type if n % 2 else "number",
            "answers": [{"answer": a, "answer_id": k} for k, a in enumerate(item["gt_answers"])],
        }
        for n, item in enumerate(items)
    ]
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    (path / name).write_text(json.dumps({"data_subtype": "val2014", "questions": rows}))
    (path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": people}))
    return path, {str(n): item["pred_answer"] for n, item in enumerate(items)}


def test_both_normalisers():
    assert {text: evalai(text) for text in INPUTS["processor_inputs"]} == EXPECTED["evalai_processor"]
    assert {t: vqaeval(t) for t in INPUTS["processor_inputs"]} == EXPECTED["vqa_official_punct_then_digit"]
    assert evalai("." * 40) == "." * 8  # the flag that stands where a count belongs


def test_textvqas_official_accuracy(tmp_path):
    folder, texts = textvqa_of(tmp_path)
    found = Marked(TextVqa(), folder, texts, wording="no-ocr")
    assert list(found.told("score").values()) == EXPECTED["textvqa_items_score"]
    assert found.sums["score"] / found.sums["asked"] == EXPECTED["textvqa_accuracy"]
    assert f"{found.metrics['accuracy']:.2f}" == f"{100 * EXPECTED['textvqa_accuracy']:.2f}"


def test_vqas_official_accuracy(tmp_path):
    folder, texts = vqav2_of(tmp_path)
    found = Marked(VqaV2(), folder, texts)
    assert [round(100 * score, 2) for score in found.told("score").values()] == EXPECTED["vqa_official_items_x100"]
    assert round(found.metrics["accuracy"], 2) == EXPECTED["vqa_official_overall"]
    halves = [found.metrics["number"], found.metrics["other"]]
    assert found.metrics["accuracy"] == pytest.approx(sum(halves) / 2)


def test_unanimous_answers_are_not_normalised_by_the_official_metric():
    assert (official("Yes", ["yes"] * 10), m4c("Yes", ["yes"] * 10)) == (0.0, 1.0)
    assert official("Yes", ["yes"] * 9 + ["no"]) == 1.0


def test_textvqas_prompts(tmp_path):
    folder, _ = textvqa_of(tmp_path)
    with pytest.raises(ValueError, match=r"has no llava_textvqa_val_v051_ocr.jsonl .*--wording no-ocr"):
        asked(TextVqa(), folder)
    assert asked(TextVqa(), folder, "no-ocr")[1].turns == ("What is 1?" + SHORT,)
    images = sorted({q.unit for q in asked(TextVqa(), folder, "no-ocr")})
    ocr = [{"image_id": image, "ocr_tokens": ["EXIT", "5,", "a b"] if n else []} for n, image in enumerate(images)]
    (tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps({"data": ocr}))
    questions = asked(TextVqa(), folder)
    assert questions[0].turns == ("What is 0?\nReference OCR token: " + SHORT,)
    assert questions[4].turns == ("What is 4?\nReference OCR token: EXIT, 5,, a b" + SHORT,)
    lines(
        tmp_path / "llava_textvqa_val_v051_ocr.jsonl",
        [{"question_id": q.unit, "text": q.turns[0].replace("EXIT", "ENTRY")} for q in questions],
    )
    assert "ENTRY, 5,, a b" in asked(TextVqa(), folder)[4].turns[0]


def test_vizwiz(tmp_path):
    rows = [
        {"image": "a.jpg", "question": "what's THIS?", "answers": [{"answer": "cat"}] * 10, "answer_type": "other"},
        {
            "image": "b.jpg",
            "question": "Colour?",
            "answers": [{"answer": "unanswerable"}] * 10,
            "answer_type": "unanswerable",
        },
    ]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    found = Marked(VizWiz(), tmp_path, {"0": "A cat.", "1": "red"})
    assert found.metrics == {"accuracy": 50.0, "other": 100.0, "unanswerable": 0.0}
    assert found.questions[0].turns == (
        "What's this?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
    )
    upload = VizWiz().upload(found.questions, found.answers, Data(tmp_path, VizWiz()))
    assert json.loads(upload["vizwiz_upload.json"]) == [
        {"image": "a.jpg", "answer": "cat"},
        {"image": "b.jpg", "answer": "red"},
    ]


def test_uploads_of_a_test_split(tmp_path):
    """Which cannot be scored here; the server wants all of test2015 answered."""
    rows = [{"question_id": n, "image": f"{n}.jpg", "text": f"What is {n}?" + SHORT} for n in (7, 3)]
    lines(tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    bench, texts = VqaV2(), {"7": "Two dogs.", "3": "the U.S.A"}
    with pytest.raises(ValueError, match="scored by its server only"):
        Marked(bench, tmp_path, texts)
    questions, data = asked(bench, tmp_path), Data(tmp_path, bench)
    assert questions[0].turns == ("What is 7?" + SHORT,)
    answers = {name: type("A", (), {"text": text}) for name, text in texts.items()}
    out = json.loads(bench.upload(questions, answers, data)["vqav2_upload.json"])
    assert out == [{"question_id": 7, "answer": "2 dogs"}, {"question_id": 3, "answer": "usa"}]
    lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": n} for n in (1, 3, 7)])
    out = json.loads(bench.upload(questions, answers, data)["vqav2_upload.json"])
    assert [row["answer"] for row in out] == ["", "usa", "2 dogs"]


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vqav2 needs its questions, .*visualqa.org"):
        asked(VqaV2(), tmp_path)
    folder, texts = vqav2_of(tmp_path)
    path = folder / "v2_mscoco_val2014_annotations.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"annotations": whole["annotations"][1:]}))
    with pytest.raises(ValueError, match="has no question 0: it is of another split"):
        asked(VqaV2(), folder)
    whole["annotations"][0]["answers"].pop()
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="question 0: 9 answers of people, and m4c wants 10"):
        Marked(VqaV2(), folder, texts, flavour="m4c")


@given(st.text(), st.lists(st.text(), min_size=2, max_size=10))
def test_no_answer_is_too_odd(text, people):
    assert 0 <= m4c(text, people) <= 1 and 0 <= official(text, people) <= 1
