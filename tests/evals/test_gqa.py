"""GQA: exact match after LLaVA's export, and the export."""

import json

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches.gqa import Gqa, exported
from tests.make.marking import Marked, asked

BENCH = Gqa()
ROWS = {
    "20": {"question": "Is it red?", "imageId": "n1", "answer": "yes", "types": {"structural": "verify"}},
    "21": {"question": "What is it?", "imageId": "n1", "answer": "ball", "types": {"structural": "query"}},
    "22": {"question": "Which side?", "imageId": "n2", "answer": "left", "types": {"structural": "query"}},
}


def folder_of(path, rows=ROWS):
    (path / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    return path


def test_exact_match_of_what_is_exported(tmp_path):
    texts = {"20": "Yes.", "21": "a ball", "22": "LEFT..."}
    found = Marked(BENCH, folder_of(tmp_path), texts)
    assert found.metrics == {"accuracy": pytest.approx(200 / 3), "query": 50.0, "verify": 100.0}
    upload = BENCH.upload(found.questions, found.answers, Data(tmp_path, BENCH))
    assert json.loads(upload["testdev_balanced_predictions.json"]) == [
        {"questionId": "20", "prediction": "yes"},
        {"questionId": "21", "prediction": "a ball"},
        {"questionId": "22", "prediction": "left"},
    ]
    assert exported(" Yes.") == " yes" and exported("yes!") == "yes!"  # nothing else is mended


def test_prompts_and_units(tmp_path):
    questions = asked(BENCH, folder_of(tmp_path))
    assert questions[0].turns == ("Is it red?\nAnswer the question using a single word or phrase.",)
    assert [q.unit for q in questions] == ["n1", "n1", "n2"] and questions[2].images[0].source.endswith("n2.jpg")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gqa needs its questions with answers.*stanford.edu"):
        asked(BENCH, tmp_path)
    with pytest.raises(ValueError, match="a row has no answer"):
        asked(BENCH, folder_of(tmp_path, {"1": {"question": "q", "imageId": "n"}}))
