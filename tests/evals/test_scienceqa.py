"""ScienceQA: the official script's parse and accuracies, and LLaVA's prompts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.base import Answer
from mmfast.evals.benches.scienceqa import ScienceQa, officially, strictly
from tests.make.marking import Marked, asked, golden

BENCH, INPUTS, EXPECTED = ScienceQa(), golden("scienceqa/inputs.json"), golden("scienceqa/expected.json")


def folder_of(path, problems=None, split=None):
    (path / "problems.json").write_text(json.dumps(INPUTS["problems"] if problems is None else problems))
    (path / "pid_splits.json").write_text(json.dumps({"test": INPUTS["split"]} if split is None else split))
    return path


def answers(prompts=True):
    return {
        row["question_id"]: Answer(id=row["question_id"], turns=(row["text"],), meta=row if prompts else {})
        for row in INPUTS["predictions"]
    }


def test_the_official_figures(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), answers())
    told = found.metrics
    line = (
        f"Total: {found.sums['asked']:.0f}, Correct: {found.sums['right']:.0f}, Accuracy: {told['accuracy']:.2f}%, "
        f"IMG-Accuracy: {told['img_accuracy']:.2f}%"
    )
    assert line == EXPECTED["stdout"] and told["accuracy"] == EXPECTED["result"]["acc"]
    assert found.told("said") == EXPECTED["parsed"]
    assert len(found.marks) == 50
    unread = [t for t in EXPECTED["parsed"].values() if t == "FAILED"]
    assert found.scoring.counts["unparsed"] >= len(unread) - (50 - len(INPUTS["predictions"])) > 0


def test_without_prompts_the_picture_decides(tmp_path):
    """Answers of our own have no prompt beside them: a problem with a picture is one of IMG, also unanswered ones are
    counted as the official script does."""
    found = Marked(BENCH, folder_of(tmp_path), answers(prompts=False))
    pictures = {name for name in INPUTS["split"] if INPUTS["problems"][name]["image"]}
    answered = pictures & {row["question_id"] for row in INPUTS["predictions"]}
    assert found.sums["img:asked"] == len(answered) and found.metrics["accuracy"] == EXPECTED["result"]["acc"]


def test_prompts_are_llavas(tmp_path):
    problem = {
        "question": "Which is round?\nLook well.",
        "choices": ["a ball", "a box"],
        "answer": 0,
        "hint": "",
        "image": None,
    }
    hinted = problem | {"hint": "Two toys.", "image": "image.png", "subject": "natural science"}
    first, second = asked(BENCH, folder_of(tmp_path, {"1": problem, "2": hinted}, {"test": ["1", "2"]}))
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert first.turns == ("Which is round?\nLook well.\nA. a ball\nB. a box" + letter,) and not first.images
    assert second.turns == ("Context: Two toys.\nWhich is round?\nLook well.\nA. a ball\nB. a box" + letter,)
    assert second.images[0].source.endswith("2/image.png")


def test_strict_reads_a_letter_that_stands_alone(tmp_path):
    assert officially("(B)") == "FAILED" and strictly("(B)") == "B" and strictly("B") == "B"
    assert strictly("A or B") == "FAILED" and strictly("I'd say so") == "FAILED"
    found = Marked(BENCH, folder_of(tmp_path), answers(), strict=True)
    assert found.metrics["accuracy"] != EXPECTED["result"]["acc"]


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"problems.json.*lupantech/ScienceQA.*CC BY-NC-SA"):
        asked(BENCH, tmp_path)
    with pytest.raises(ValueError, match=r"a row has no test"):
        asked(BENCH, folder_of(tmp_path, split={"val": []}))
    with pytest.raises(ValueError, match=r"has no problem 99"):
        asked(BENCH, folder_of(tmp_path, split={"test": ["99"]}))
    with pytest.raises(ValueError, match=r"a row has no hint"):
        asked(
            BENCH,
            folder_of(tmp_path, {"1": {"question": "", "choices": [], "answer": 0, "image": None}}, {"test": ["1"]}),
        )
    (tmp_path / "problems.json").write_text("[")
    with pytest.raises(ValueError, match=r"is no JSON"):
        asked(BENCH, tmp_path)


@given(st.text())
def test_no_answer_is_too_odd(text):
    assert officially(text) == "FAILED" or len(officially(text)) == 1
    assert strictly(text) == "FAILED" or strictly(text) in "ABCDE"
