"""MHumanEval: what people marked, counted by hand here; no official script is known."""

import base64
import json

import numpy as np
import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches import bench
from mmfast.evals.intervals import intervals
from tests.make.marking import marked

TEXTS = {"a": "A red dog sits.", "b": "Two cats left of a box.", "c": "A lamp.", "d": "Rain falls on it."}


def row(name, annotator, *segments, **more):
    return {"id": name, "annotator": annotator, **more} | {
        "segments": [{"kind": kind, "from": start, "to": end} for kind, start, end in segments]
    }


ONE = [
    row("a", "ann", ("object", 6, 9)),
    row("b", "ann", ("Number", 0, 3), ("position", 9, 16), ("number", 20, 23)),
    row("c", "ann"),
    row("d", "ann"),
]


@pytest.fixture
def home(tmp_path):
    lines = [{"id": key, "question": "What is here?", "image": f"{key}.jpg"} for key in TEXTS]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def judged(home, rows, **given):
    (home / "judgements.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return marked("mhumaneval", home, TEXTS, **given)


def test_rates_of_answers_and_shares_of_segments(home):
    metrics, _, scoring = judged(home, ONE)
    assert [metrics[name] for name in ("All", "Object", "Position", "Number", "Others")] == [50, 25, 25, 25, 0]
    assert [metrics[f"share.{kind}"] for kind in ("object", "position", "number", "others")] == [25, 25, 50, 0]
    assert metrics["segments"] == 1
    assert metrics["marked"] == pytest.approx(100 * (3 + 3 + 7 + 3) / sum(map(len, TEXTS.values())))
    assert "kappa" not in metrics and scoring.notes[0].startswith("judged by 1 people: judgements.jsonl, sha256 ")


def test_several_people_count_their_part_and_agree_or_not(home):
    rows = [*ONE, row("a", "bob", ("object", 2, 9)), row("b", "bob"), row("c", "bob", ("odd", 2, 6)), row("d", "bob")]
    metrics, marks, _ = judged(home, rows)
    assert metrics["All"] == 50 and metrics["Object"] == 25 and metrics["Odd"] == 12.5 and metrics["Number"] == 12.5
    # Pairs: a wrong/wrong, b wrong/right, c right/wrong, d right/right; half of all verdicts are wrong
    assert metrics["agreement"] == 50 and metrics["kappa"] == 0
    assert metrics["agreement.characters"] == pytest.approx(100 * 2 * 3 / (3 + 7 + 13 + 0 + 0 + 4))
    assert [mark.told["judgements"] for mark in marks] == [2, 2, 2, 2]
    alike = judged(home, [*ONE, *({**one, "annotator": "bob"} for one in ONE)])[0]
    assert alike["agreement"] == alike["agreement.characters"] == 100 and alike["kappa"] == 1
    found = intervals(marks, lambda sums: bench("mhumaneval").metrics(sums, "official"))
    assert found["All"][0] < 50 < found["All"][1] and np.isfinite(list(found.values())).all()


def test_three_people_make_three_pairs(home):
    rows = [*ONE, *(row(key, name) for key in TEXTS for name in ("bob", "cy"))]
    metrics, marks, _ = judged(home, rows)
    assert marks[0].sums["pairs"] == 3 and marks[0].sums["equal"] == 1
    assert metrics["All"] == pytest.approx(100 * 2 / 12) and metrics["agreement"] == pytest.approx(100 * 8 / 12)
    chance = (1 / 6) ** 2 + (5 / 6) ** 2
    assert metrics["kappa"] == pytest.approx((2 / 3 - chance) / (1 - chance))


def test_judgements_may_lie_elsewhere_and_are_no_part_of_the_data(home, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "theirs.jsonl"
    other.write_text("\n".join(map(json.dumps, ONE)))
    metrics, _, scoring = marked("mhumaneval", home, TEXTS, judgements=str(other))
    assert metrics["All"] == 50 and list(scoring.data.hashes) == ["questions.jsonl"]
    with pytest.raises(ValueError, match="MHumanEval needs what people marked"):
        marked("mhumaneval", home, TEXTS)
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: MHumanEval needs"):
        marked("mhumaneval", home, TEXTS, judgements="nowhere.jsonl")


@pytest.mark.parametrize(
    "wrong, told",
    [
        (ONE[:3], "no judgement of 1 answers .the first: d"),
        ([*ONE, row("e", "ann")], ":5: there is no answer e"),
        ([*ONE, row("a", "ann")], ":5: ann judged the answer to a before"),
        ([*ONE[:3], row("d", "ann", ("object", 3, 99))], ":4: a segment 'object' from 3 to 99 is not within the 17"),
        ([*ONE[:3], row("d", "ann", ("object", 3, 3))], "from 3 to 3"),
        ([*ONE[:3], row("d", "ann", ("object", -2, 3))], "from -2 to 3"),
        ([*ONE[:3], row("d", "ann", (" ", 0, 3))], "a segment '' from 0"),
        ([*ONE[:3], {"id": "d", "annotator": "ann"}], ":4 is no judgement"),
        ([*ONE[:3], {"id": "d", "segments": [{"kind": "object", "span": [0, 1]}]}], ":4 is no judgement"),
        ([*ONE[:3], row("d", "ann", text="Another answer.")], ":4: another answer to d was judged"),
    ],
)
def test_a_wrong_judgement_is_named_by_its_line(home, wrong, told):
    with pytest.raises(ValueError, match=told):
        judged(home, wrong)


def test_the_text_that_was_judged_is_the_one_that_is_scored(home):
    rows = [{**one, "text": TEXTS[one["id"]]} for one in ONE]
    assert judged(home, rows)[0]["All"] == 50


def test_questions_hold_their_image_or_its_name(home):
    content = bytes(range(256))
    inside = base64.b64encode(content).decode()
    lines = [{"question": "What?", "image": inside}, {"question": "Again?", "image": inside, "question_id": 7}]
    (home / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one = bench("mhumaneval")
    first, second = one.questions(Data(home, one), one.wordings["rlhfv"])
    assert (first.id, second.id) == ("0", "7") and first.images[0].data == content and first.unit == second.unit
    (home / "questions.jsonl").write_text(json.dumps({"image": "a.jpg"}))
    with pytest.raises(ValueError, match=r"questions\.jsonl:1 has no question"):
        list(one.questions(Data(home, one), one.wordings["rlhfv"]))
