"""MME: the official tool's scores to the last digit, on answers of every odd kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.benches.mme import COGNITION, PERCEPTION, Mme, officially, strictly
from tests.make.marking import Marked, asked, golden

BENCH, INPUTS = Mme(), golden("mme/inputs.json")


def folder_of(path, skip=()):
    for task, rows in INPUTS.items():
        if task not in skip:
            (path / f"{task}.txt").write_text("".join("\t".join(row[:3]) + "\n" for row in rows))
    return path


def texts():
    return {f"{task}/{r[0]}:{n % 2 + 1}": r[3] for task, rows in INPUTS.items() for n, r in enumerate(rows)}


def test_the_official_scores(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), texts())
    expected = {name: float(told) for name, told in golden("mme/expected.json").items()}
    assert {*expected} == {"perception", "cognition", *PERCEPTION, *COGNITION}
    assert found.metrics == expected
    assert found.scoring.counts["neither yes nor no"] > 20


def test_the_first_four_characters_decide():
    told = {
        "Yes": True,
        "eyes": True,
        "noon": False,
        "Nope": False,
        "Now yes": False,
        "  Yes": None,
        "": None,
        "YES!": True,
    }
    assert {text: officially(text) for text in told} == told
    assert strictly("  Yes") is True and strictly("Now yes") is True and strictly("Nope") is None


def test_a_picture_counts_only_with_both_answers(tmp_path):
    right = {f"{task}/{r[0]}:{n % 2 + 1}": r[2] for task, rows in INPUTS.items() for n, r in enumerate(rows)}
    found = Marked(BENCH, folder_of(tmp_path), right)
    assert found.metrics["perception"] == 2000 and found.metrics["cognition"] == 800
    one = next(name for name in right if name.startswith("OCR/"))
    pictures = len(INPUTS["OCR"]) / 2
    lower = Marked(BENCH, tmp_path, right | {one: "other"}).metrics["OCR"]
    assert lower == pytest.approx(200 - 100 / (2 * pictures) - 100 / pictures)


def test_the_suffix_is_swapped(tmp_path):
    first = asked(BENCH, folder_of(tmp_path))[0]
    assert first.turns[0] == INPUTS["existence"][0][1].removesuffix(" Please answer yes or no.") + (
        "\nAnswer the question using a single word or phrase."
    )
    assert asked(BENCH, tmp_path, "official")[0].turns[0] == INPUTS["existence"][0][1]
    (tmp_path / "artwork" / "images").mkdir(parents=True)
    (tmp_path / "artwork" / "images" / "0000.png").touch()
    where = {q.id: q.images[0].source for q in asked(BENCH, tmp_path)}
    assert where["artwork/0000.png:1"].endswith("artwork/images/0000.png")
    assert where["OCR/0000.png:1"].endswith("OCR/0000.png")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no OCR.txt .*eval_tool, folder Your_Results"):
        asked(BENCH, folder_of(tmp_path, skip=("OCR",)))
    (tmp_path / "OCR.txt").write_text("0.png\tq\tYes\n")
    with pytest.raises(ValueError, match=r"1 lines: MME has two a picture"):
        asked(BENCH, tmp_path)
    (tmp_path / "OCR.txt").write_text("0.png\tq\tYes\n0.png q No\n")
    with pytest.raises(ValueError, match=r"OCR.txt, line 2: not image, question and Yes or No"):
        asked(BENCH, tmp_path)


@given(st.text())
def test_no_answer_is_too_odd(text):
    assert officially(text) in (True, False, None) and strictly(text) in (True, False, None)
