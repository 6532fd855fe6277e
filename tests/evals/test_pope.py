"""POPE: the official scripts' figures, verdicts and joins, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.base import Data
from mmfast.evals.benches.pope import PARTS, Pope, officially, strictly
from tests.make.marking import Marked, asked, golden, lines

BENCH, SHORT = Pope(), "\nAnswer the question using a single word or phrase."
EXPECTED = golden("pope/expected.json")
NAMES = {
    "Accuracy": "accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "F1 score": "f1",
    "Yes ratio": "yes_ratio",
}


def folder_of(path, questions=True):
    """LLaVA's layout: questions without labels, labels beside them; or POPE's own three files."""
    if questions:
        lines(path / "llava_pope_test.jsonl", golden("pope/questions.json"))
    for part, labels in golden("pope/labels.json").items():
        lines(path / "coco" / f"coco_pope_{part}.json", labels)
    return path


@pytest.mark.parametrize("script", ["llava_eval_pope.py", "POPE_evaluate.py"])
def test_the_official_figures(tmp_path, script):
    texts = {str(row["question_id"]): row["text"] for row in golden("pope/answers.json")}
    if script == "POPE_evaluate.py":  # the same answers, in the order of POPE's own files
        rows = golden("pope/questions.json")
        texts = {f"{r['category']}{n % 18 + 1}": texts[str(r["question_id"])] for n, r in enumerate(rows)}
    found = Marked(BENCH, folder_of(tmp_path, questions=script == "llava_eval_pope.py"), texts)
    for part, expected in EXPECTED[script].items():
        for theirs, ours in NAMES.items():
            assert found.metrics[f"{part}.{ours}"] == expected[theirs]
    assert found.metrics["f1"] == sum(EXPECTED[script][part]["F1 score"] for part in PARTS) / 3
    assert "random 18, popular 18, adversarial 18 questions" in found.scoring.notes[0]
    assert len(found.scoring.data.hashes) == (4 if script == "llava_eval_pope.py" else 3)
    assert all(digest[:12] in found.scoring.notes[0] for digest in found.scoring.data.hashes.values())


def test_the_official_verdict_of_each_phrase():
    verdicts = EXPECTED["phrase_verdicts"]
    assert len(verdicts) == 28
    assert {text: "yes" if officially(text) else "no" for text in verdicts} == verdicts


def test_strict_reads_the_first_word_and_counts_what_it_cannot_read(tmp_path):
    texts = {str(row["question_id"]): row["text"] for row in golden("pope/answers.json")}
    found = Marked(BENCH, folder_of(tmp_path), texts, strict=True)
    assert strictly("NO") is False and strictly("Yes, no doubt") is True and strictly("isn't") is False
    assert strictly("cannot tell") is None and strictly("") is None
    none = [text for text in texts.values() if strictly(text) is None]
    assert none and found.scoring.counts["unparsed"] == len(none)
    assert found.metrics["f1"] != Marked(BENCH, tmp_path, texts).metrics["f1"]


def test_nobody_says_yes():
    """Where the official script divides by zero, precision and F1 are 0."""
    told = BENCH.metrics({"random:FN": 3.0, "random:TN": 2.0, "random:yes": 0.0}, "official")
    assert (told["random.f1"], told["random.precision"], told["f1"], told["random.yes_ratio"]) == (0, 0, 0, 0)


def test_prompts_have_the_suffix_once_and_questions_their_image(tmp_path):
    questions = asked(BENCH, folder_of(tmp_path))
    assert all(q.turns[0].count(SHORT) == 1 and q.turns[0].endswith(SHORT) for q in questions)
    assert len({q.unit for q in questions}) == 3 and questions[0].images[0].source.endswith(questions[0].unit)
    assert [q.turns[0].removesuffix(SHORT) for q in questions] == [q.turns[0] for q in asked(BENCH, tmp_path, "bare")]


def test_two_versions_of_the_data_are_told_apart(tmp_path):
    folder = folder_of(tmp_path)
    path = folder / "coco" / "coco_pope_random.json"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"18 random questions.*17: these are two versions of POPE"):
        asked(BENCH, folder)
    path.write_text(whole.replace("snowboard", "surfboard"))
    with pytest.raises(ValueError, match=r"not the question of its place.*two versions"):
        asked(BENCH, folder)
    path.write_text(whole.replace('"label": "yes"', '"label": "maybe"', 1))
    with pytest.raises(ValueError, match=r"must be yes or no"):
        asked(BENCH, folder)
    path.write_text(whole.replace("an umbrella in the image", "an umbrella in the imange"))  # LLaVA's version says so
    assert len(asked(BENCH, folder)) == 54


def test_data_that_is_not_there_is_named_with_its_source(tmp_path):
    with pytest.raises(
        ValueError, match=r"pope needs its questions with labels, to be had from github.com/AoiDragon/POPE"
    ):
        asked(BENCH, tmp_path)
    lines(tmp_path / "llava_pope_test.jsonl", golden("pope/questions.json"))
    with pytest.raises(ValueError, match=r"has no .*pope_random.json.*MIT"):
        asked(BENCH, tmp_path)
    (tmp_path / "llava_pope_test.jsonl").write_text("{'a': 1}\n")
    with pytest.raises(ValueError, match=r"holds no rows of JSON: line 1"):
        asked(BENCH, tmp_path)


@given(st.text())
def test_no_answer_is_too_odd(text):
    assert officially(text) in (True, False) and strictly(text) in (True, False, None)


@pytest.mark.skipif("MMFAST_EVAL_DATA" not in os.environ, reason="official data: MMFAST_EVAL_DATA")
def test_the_official_file():
    folder = Path(os.environ["MMFAST_EVAL_DATA"]) / "pope"
    questions = asked(BENCH, folder)
    assert len(questions) == 3000 and len({q.unit for q in questions}) == 500
    data = Data(folder, BENCH)
    assert json.loads(data.read("adversarial").splitlines()[0])["question_id"] == 1
    assert sum(q.truth["yes"] for q in questions) == 1500
