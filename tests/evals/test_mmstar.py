"""MMStar: the official scores, whose denominators are fixed."""

import base64
import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.benches.mmstar import MmStar, officially
from tests.make.marking import Marked, asked, golden

BENCH, ROWS = MmStar(), golden("mmstar/inputs.json")
TEXTS = {str(row["index"]): row["prediction"] for row in ROWS}
IMAGE = base64.b64encode(b"picture").decode()


def folder_of(path, rows=ROWS, **more):
    names = ("index", "question", "A", "B", "answer", "category", "l2_category", "image")
    with open(path / "MMStar.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"question": "Which?", "A": "one", "image": IMAGE, **row, **more} for row in rows)
    return path


def test_the_official_scores(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), TEXTS)
    assert found.metrics == golden("mmstar/expected.json")
    assert found.scoring.notes == ["72 questions, and MMStar divides by 1500 whatever was asked"]


def test_strict_divides_by_what_was_asked(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), {str(row["index"]): row["answer"] for row in ROWS}, strict=True)
    assert found.metrics["final score"] == 1 and found.metrics["math"] == 1 and not found.scoring.notes


def test_where_the_letter_is_looked_for():
    told = {"A": True, "a": True, "(A": True, "option a is": True, "The answer is A.": True, "": False, "(": False}
    assert {text: officially(text, "A") for text in told} == told
    assert officially("Apple", "A") and not officially("It is A", "A") and not officially("the answer is", "A")


def test_prompts(tmp_path):
    question = asked(BENCH, folder_of(tmp_path))[0]
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert question.turns == ("Which?\nA. one" + letter,) and question.images[0].data == b"picture"


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no MMStar.tsv .*Lin-Chen/MMStar"):
        asked(BENCH, tmp_path)
    with pytest.raises(ValueError, match=r"index 0: MMStar has no ability math \(recognition\)"):
        asked(BENCH, folder_of(tmp_path, category="math", l2_category="recognition"))
    with pytest.raises(ValueError, match="index 0: its image is no base64"):
        asked(BENCH, folder_of(tmp_path, image="?"))


@given(st.text(), st.sampled_from("ABCD"))
def test_no_answer_is_too_odd(text, answer):
    assert officially(text, answer) in (True, False)
