"""GQA: every figure of Stanford's eval.py, exact match after LLaVA's export, and the export."""

import json
import shutil

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches.gqa import Gqa, exported
from mmfast.evals.scoring import score
from tests.make.marking import GOLDEN, Marked, asked, golden, lines

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
    expected = {"accuracy": pytest.approx(200 / 3), "query": 50.0, "open": 50.0, "verify": 100.0, "binary": 100.0}
    assert {name: found.metrics[name] for name in expected} == expected and "consistency" not in found.metrics
    upload = BENCH.upload(found.questions, found.answers, Data(tmp_path, BENCH))
    assert json.loads(upload["testdev_balanced_predictions.json"]) == [
        {"questionId": "20", "prediction": "yes"},
        {"questionId": "21", "prediction": "a ball"},
        {"questionId": "22", "prediction": "left"},
    ]
    assert exported(" Yes.") == " yes" and exported("yes!") == "yes!"  # nothing else is mended


def stored(tmp_path, *without):
    for name in ("val_all_questions.json", "val_choices.json"):
        if name not in without:
            shutil.copy(GOLDEN / "gqa" / name, tmp_path)
    return golden("gqa/answers.json"), golden("gqa/expected.json")


def test_every_figure_that_the_official_script_prints(tmp_path):
    texts, printed = stored(tmp_path)
    metrics = Marked(BENCH, tmp_path, texts).metrics
    assert {name: f"{value:.2f}" for name, value in metrics.items()} == printed
    assert {"consistency", "validity", "plausibility", "distribution", "steps.2"} < printed.keys()


def test_what_a_file_lacks_is_no_figure(tmp_path):
    """Without choices no validity (the script prints 0); without the questions that follow no consistency, and why."""
    texts, _ = stored(tmp_path, "val_choices.json")
    metrics = Marked(BENCH, tmp_path, texts).metrics
    assert "validity" not in metrics and "consistency" in metrics
    path = tmp_path / "val_all_questions.json"
    rows = {name: row for name, row in json.loads(path.read_text()).items() if row["isBalanced"]}
    path.write_text(json.dumps(rows))
    found = Marked(BENCH, tmp_path, texts)
    assert "consistency" not in found.metrics and "the file of all questions" in found.scoring.notes[0]
    assert found.metrics["accuracy"] == metrics["accuracy"]


def test_choices_of_another_split_are_refused(tmp_path):
    texts, _ = stored(tmp_path)
    (tmp_path / "val_choices.json").write_text("{}")
    with pytest.raises(ValueError, match=r"val_choices.json: a row has no valid, plausible"):
        Marked(BENCH, tmp_path, texts)


def test_the_file_for_the_script_is_read_by_its_names(tmp_path):
    """In any order: by their order alone a shuffled file scored 0."""
    texts, printed = stored(tmp_path)
    file = tmp_path / "answers" / "testdev_balanced_predictions.json"
    lines(file, [])
    rows = [{"questionId": name, "prediction": text} for name, text in texts.items()]
    file.write_text(json.dumps(rows[::-1]))
    assert f"{score(BENCH, file, data=tmp_path).metrics['accuracy']:.2f}" == printed["accuracy"]


@pytest.mark.parametrize(
    "change",
    [
        {"types": "x"},
        {"types": {"structural": 1}},
        {"semantic": "x"},
        {"semantic": [1]},
        {"groups": 3},
        {"entailed": [["a"]]},
        {"isBalanced": "no"},
    ],
)
def test_a_row_of_another_kind_is_one_line(tmp_path, change):
    with pytest.raises(ValueError, match=r"testdev_balanced_questions\.json"):
        asked(BENCH, folder_of(tmp_path, {"20": ROWS["20"] | change}))


def test_prompts_and_units(tmp_path):
    questions = asked(BENCH, folder_of(tmp_path))
    assert questions[0].turns == ("Is it red?\nAnswer the question using a single word or phrase.",)
    assert [q.unit for q in questions] == ["n1", "n1", "n2"] and questions[2].images[0].source.endswith("n2.jpg")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gqa needs its questions with answers.*stanford.edu"):
        asked(BENCH, tmp_path)
    with pytest.raises(ValueError, match="a row has no answer"):
        asked(BENCH, folder_of(tmp_path, {"1": {"question": "q", "imageId": "n"}}))
