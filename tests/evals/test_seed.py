"""SEED-Bench: the official script's printed lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.base import Data
from mmfast.evals.benches.seed import Seed, alone
from tests.make.marking import Marked, asked, golden, lines

BENCH, INPUTS = Seed(), golden("seed/inputs.json")
TEXTS = {str(row["question_id"]): row["text"] for row in INPUTS["answers"]}


def folder_of(path):
    (path / "SEED-Bench.json").write_text(json.dumps(INPUTS["annotation"]))
    return path


def test_the_official_lines(tmp_path):
    told = Marked(BENCH, folder_of(tmp_path), TEXTS).metrics
    names = {"total": "Total accuracy", "image": "image accuracy", "video": "video accuracy"}
    order = [*sorted(INPUTS["annotation"]["question_type"], key=INPUTS["annotation"]["question_type"].get), *names]
    found = [f"{names.get(name, name)}: {told[name]:.2f}%" for name in order]
    assert found == golden("seed/expected.json")["stdout_lines"]


def test_the_whole_answer_must_be_the_letter(tmp_path):
    first = INPUTS["annotation"]["questions"][0]
    name = str(first["question_id"])
    right = Marked(BENCH, folder_of(tmp_path), {**TEXTS, name: first["answer"]})
    for text in (f"{first['answer']}.", f" {first['answer']}", first["answer"].lower(), ""):
        found = Marked(BENCH, tmp_path, TEXTS | {name: text})
        assert found.sums["total:right"] == right.sums["total:right"] - 1
    assert Marked(BENCH, tmp_path, TEXTS | {name: f"({first['answer']})."}, strict=True).told("right")[name] is True
    gone = Marked(BENCH, tmp_path, {k: v for k, v in TEXTS.items() if k != name})
    assert gone.sums["total:asked"] == len(TEXTS) and gone.told("right")[name] is False
    assert alone("A or B") == "" and alone("C") == "C"


def test_prompts_pictures_and_upload(tmp_path):
    questions = asked(BENCH, folder_of(tmp_path))
    assert questions[0].turns == (
        "q0\nA. w\nB. x\nC. y\nD. z\nAnswer with the option's letter from the given choices directly.",
    )
    assert questions[0].images[0].source.endswith("SEED-Bench-image/x")
    frame = next(q for q in questions if q.truth["medium"] == "video")
    kind = INPUTS["annotation"]["question_type"][frame.truth["kind"]]
    assert frame.images[0].source.endswith(f"SEED-Bench-video-image/{kind}_{frame.id}.png")
    lines(tmp_path / "llava-seed-bench.jsonl", [{"question_id": 100, "image": "SEED-Bench-image/own.jpg"}])
    assert asked(BENCH, tmp_path)[0].images[0].source.endswith("SEED-Bench-image/own.jpg")
    found = Marked(BENCH, tmp_path, TEXTS)
    upload = BENCH.upload(found.questions, found.answers, Data(tmp_path, BENCH))["seed_upload.jsonl"].decode()
    assert json.loads(upload.splitlines()[0]) == {"question_id": "100", "prediction": "A"} and upload.count("\n") == 40


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"has no SEED-Bench.json: .*AILab-CVC/SEED-Bench"):
        asked(BENCH, tmp_path)


@given(st.text())
def test_no_answer_is_too_odd(text):
    assert alone(text) in ("", "A", "B", "C", "D")
