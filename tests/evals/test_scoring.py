"""The score of a file of answers: what it holds, what is counted, what is refused."""

import json

import pytest

from mmfast.engines.base import Reply
from mmfast.evals import Result, score
from mmfast.evals.base import Answer
from mmfast.evals.scoring import metric_names
from mmfast.evals.tables import lines, markdown
from tests.make.engine_cases import Fake
from tests.make.eval_cases import Talk, Toy, ask, toy, write_toy


class Yes(Fake):
    """Says yes to half the questions, with a capital to some."""

    def reply(self, request, sample):
        said = "Yes, I think." if "so? 1" in str(request.messages) else "yes" if request.images[0].id < "8" else ""
        return Reply(key=request.key, sample=sample, text=said)


@pytest.fixture
def made(tmp_path):
    """(its data, a folder of answers)"""
    data = write_toy(tmp_path / "data", images=8)
    ask(toy(data), tmp_path / "out", Yes())
    return data, tmp_path / "out"


def official_rows(data, text="yes"):
    rows = [json.loads(line) for line in (data / "toy.jsonl").open()]
    return [{"question_id": row["number"], "text": text} for row in rows]


def test_a_score_holds_its_figures_and_all_that_made_them(made):
    data, out = made
    result = score(Toy(), out, data=data)
    rows = {row["id"]: row for row in map(json.loads, (data / "toy.jsonl").open())}
    said = {
        row["id"]: row["text"].startswith("yes")
        for row in map(json.loads, (out / "answers.jsonl").open())
        if "id" in row
    }
    right = sum(said[name] == row["yes"] for name, row in rows.items())
    assert isinstance(result, Result) and result.metrics == {"accuracy": right / 24, "wrong": 24 - right}
    low, high = result.intervals["accuracy"]
    assert low < right / 24 < high
    assert result.counts["questions"] == 24 and result.counts["empty"] > 0 and "missing" not in result.counts
    assert result.items[0] == {
        "id": "q0",
        "unit": "0.png",
        "right": float(said["q0"]),
        "asked": 1.0,
        "said": said["q0"],
    }
    made_by = result.made_by
    assert made_by["wording"] == "short" and made_by["decode"]["max_tokens"] == 8 and made_by["parser"] == "official"
    assert list(made_by["data"]) == ["toy.jsonl"] and made_by["weights"] and not made_by["judge"]
    assert result.strict["accuracy"] != result.metrics["accuracy"]  # "Yes" counts by our parser
    strict = score(Toy(), out, data=data, strict=True)
    assert strict.metrics == result.strict and strict.made_by["parser"] == "strict" and not strict.strict
    assert score(Toy(), out, data=data, flavour="other").metrics["accuracy"] == pytest.approx(100 * right / 24)


def test_an_official_file_says_nothing_of_how_it_was_made(made, tmp_path):
    data, _ = made
    path = tmp_path / "a.json"
    path.write_text(json.dumps(official_rows(data)))
    result = score(Toy(), path, data=data)
    assert result.metrics["accuracy"] == 8 / 24
    assert [result.made_by[name] for name in ("wording", "decode", "template", "weights")] == [""] * 4
    told = score(Toy(), path, data=data, wording="bare")
    assert told.made_by["wording"] == "bare" and told.made_by["decode"]["max_tokens"] == 8


def test_answers_that_are_missing_are_refused_wrong_or_left_out(made, tmp_path):
    data, _ = made
    path = tmp_path / "a.json"
    path.write_text(json.dumps(official_rows(data)[:-2]))

    class Wrong(Toy):
        missing = "wrong"

    class Skipped(Toy):
        missing = "skipped"

    with pytest.raises(ValueError, match=r"lacks 2 of the 24 answers to toy .the first: q22.*official score is of all"):
        score(Toy(), path, data=data)
    wrong, skipped = score(Wrong(), path, data=data), score(Skipped(), path, data=data)
    assert wrong.counts["missing"] == 2 and wrong.counts["questions"] == 24 == len(wrong.marks)
    assert skipped.counts["questions"] == 22 == len(skipped.marks) and "missing" not in skipped.counts


def test_answers_of_another_version_of_the_data_are_refused(made):
    data, out = made
    text = (data / "toy.jsonl").read_text()
    (data / "toy.jsonl").write_text(text.replace("so?", "true?"))
    with pytest.raises(ValueError, match=r"another version of the data: toy.jsonl \w{12}; .* has toy.jsonl \w{12}"):
        score(Toy(), out, data=data)
    (data / "toy.jsonl").write_text(text)
    (data / "toy.jsonl").rename(data / "renamed.jsonl")

    class Renamed(Toy):
        files = Toy.files | {
            "questions": Toy.files["questions"].__class__(names=("renamed.jsonl",), what="q", source="s", licence="l")
        }

    assert score(Renamed(), out, data=data).made_by["data"].keys() == {"renamed.jsonl"}  # the same by its content


def test_options_without_effect_are_refused(made):
    data, out = made
    judge = object()
    for bench, options, message in (
        (Toy(), {"judge": judge}, "--judge has no effect: toy"),
        (Toy(), {"runs": 2}, "--runs has no effect without a --judge"),
        (Talk(), {"strict": True}, "--strict has no effect: talk"),
        (Toy(), {"flavour": "x"}, "toy has no 'x'; there are official, other"),
        (Toy(), {"wording": "bare"}, "--wording bare: .* was asked with short"),
        ("toi", {}, "no benchmark toi"),
    ):
        with pytest.raises(ValueError, match=message):
            score(bench, out, data=data, **options)


def test_a_limited_run_is_scored_as_far_as_it_went(tmp_path):
    data = write_toy(tmp_path / "data")
    ask(toy(data, limit=5), tmp_path / "out", Yes())
    result = score(Toy(), tmp_path / "out", data=data)
    assert result.counts["questions"] == 5 and result.made_by["limit"] == 5
    assert "words an answer" in result.notes[0] and "only the first 5 questions" in result.notes[1]


def test_answers_in_memory_and_turns_that_do_not_fit(made):
    data, _ = made
    answers = {f"q{n}": Answer(id=f"q{n}", turns=("yes",)) for n in range(24)}
    assert score(Toy(), answers, data=data).metrics["accuracy"] == 8 / 24
    answers["q3"] = Answer(id="q3", turns=("yes", "no"))
    with pytest.raises(ValueError, match="the answer to q3 has 2 turns, and toy asks 1"):
        score(Toy(), answers, data=data)
    with pytest.raises(ValueError, match="the answers lacks 23 of the 24"):
        score(Toy(), {"q0": answers["q0"]}, data=data)


def test_figures_of_all_marks_have_no_interval(made):
    class Fitted(Toy):
        def extra(self, marks, scoring):
            return {"fit": float(len(marks))}

    result = score(Fitted(), made[1], data=made[0])
    assert result.metrics["fit"] == 24 and "fit" not in result.intervals
    assert any("(no interval)" in line for line in lines(result)) and "24.00 |" in markdown({"a": result})


def test_what_is_measured_is_known_before_any_answer(made):
    asked = toy(made[0])
    assert metric_names(asked.bench, list(asked.questions), asked.data) == (["accuracy", "wrong"], [])
