"""Parsers of a critic's and a judge's text: exact, never raising, never inventing."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.feedback.critique import by_labels
from mmfast.feedback.ratings import ratings, schema, written
from mmfast.feedback.verdicts import PARSERS, last_brackets, reason, verdict

LABELS = {"a": "1", "b": "2", "tie": "0"}
TWO = {"a": "1", "b": "2"}
FIVE = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")


@pytest.mark.parametrize(
    ("text", "meaning", "why"),
    [
        ("Short.\nVerdict: [[1]]", "a", ""),
        ("[[2]] since it is right", "b", ""),
        ("[[ 0 ]]", "tie", ""),
        ("[[1]] ... so [[1]]", "a", ""),  # repeated, not contradicted
        ("[[[1]]]", "a", ""),
        ("", None, "empty"),
        ("  \n", None, "empty"),
        ("I cannot help with that.", None, "no verdict in"),
        ("Answer 1 is better. [1]", None, "no verdict in"),
        ("It says much, and [[1", None, "no verdict in"),  # cut
        ("not [[1]], but [[2]]", None, "holds [[1]] and [[2]]"),
        ("[[3]]", None, "[[3]] is no verdict"),
        ("[[1]] or [[1 or 2]]", None, "[[1 or 2]] is no verdict"),
        ("[[]]", None, "[[]] is no verdict"),
        ("[[١]]", None, "is no verdict"),  # an Arabic one
    ],
)
def test_a_verdict_is_read_where_there_is_exactly_one(text, meaning, why):
    found, told = verdict(text, LABELS)
    assert found == meaning and (why in told if why else told == "")


# What SIMA's script makes of these: the text after the last "[[" up to the next "]]" must be "1" or "2" itself
SIMA = {
    "The reason: it is right.\nThe better one: [[1]].": "a",
    "[[2]]": "b",
    "not [[1]], but [[2]]": "b",  # the last counts
    "[[2]] and not [[1]]": "a",
    "[[ 1 ]]": None,
    "[[1]] since [[it]]": None,
    "[[1": "a",  # cut behind the number
    "1": "a",  # without any brackets
    "2]] is better": "b",
    "": None,
    "I cannot tell.": None,
    "[[3]]": None,
    "[[1]] [[": None,
    "[[[[1]]]]": "a",
}


@pytest.mark.parametrize(("text", "meaning"), SIMA.items())
def test_simas_rule_to_the_letter(text, meaning):
    said = text.split("[[")[-1].split("]]")[0]  # the fact, written as its script does
    assert {"1": "a", "2": "b"}.get(said) == meaning
    found, told = last_brackets(text, TWO)
    assert found == meaning and bool(told) == (meaning is None)


pieces = st.sampled_from(
    ["[[", "]]", "[", "]", "1", "2", "0", " ", "\n", "x", "[[1]]", "[[2]]", "{", "}", '"', "ö", "𝄞"]
)
texts = st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join))


@settings(max_examples=400, deadline=None)
@given(texts)
def test_no_text_makes_a_parser_raise_or_invent(text):
    for name, parse in PARSERS.items():
        meaning, told = parse(text, LABELS)
        assert (meaning is None) == bool(told)
        if meaning is not None:  # what was read was said
            assert LABELS[meaning] in text
            if name == "verdict":
                inside = {found.strip() for found in re.findall(r"\[\[([^\[\]]*)\]\]", text)}
                assert inside == {LABELS[meaning]}
    assert set(reason(text).split("\n")) <= {line.strip() for line in text.strip().split("\n")} | set(
        text.strip().split("\n")
    ) | {""}


def test_the_reason_is_what_stands_beside_the_verdict():
    assert reason("Both see it.\nOne invents.\nVerdict: [[1]]") == "Both see it.\nOne invents."
    assert reason("[[1]]\nbecause it is so") == "because it is so"
    assert reason("no verdict") == "no verdict" and reason("[[1]]") == ""


def test_labels_are_read_as_probabilities():
    said, p, why = by_labels({"a": -1.0, "b": -2.0})
    assert said == "a" and why == "" and p == pytest.approx(1 / (1 + 2.718281828**-1))
    said, p, _ = by_labels({"a": -2.0, "b": -3.0, "tie": -1.0})
    assert said == "tie" and p == pytest.approx((0.36788 + 0.5) / (0.36788 + 0.13534 + 1), abs=1e-4)
    assert by_labels({"a": -700.0, "b": -700.0})[:2] == ("tie", 0.5)  # far below what a float of exp holds
    assert by_labels({"a": -float("inf"), "b": -float("inf")}) == (None, None, "no verdict has a probability")
    assert by_labels({"a": float("nan"), "b": -1.0})[0] is None
    assert by_labels({"a": -float("inf"), "b": -5.0})[:2] == ("b", 0.0)


# ratings


def answer(**changes):
    return {"reason": "so", **dict.fromkeys(FIVE, 3), **changes}


def read(value, number=2):
    return ratings(value if isinstance(value, str) else json.dumps(value), number, FIVE, 0, 4)


@pytest.mark.parametrize("around", ["{}", "Here it is:\n```json\n{}\n```", "I think {{x}} of {{}} {}", "{} and so on"])
def test_ratings_are_read_wherever_the_object_stands(around):
    told = json.dumps({"answers": [answer(), answer(Verbosity=0)], "reference": " A cup. "})
    found = read(around.replace("{{", "<").replace("}}", ">").replace("{}", told).replace("<", "{").replace(">", "}"))
    assert found.scores == [dict.fromkeys(FIVE, 3), {**dict.fromkeys(FIVE, 3), "Verbosity": 0}]
    assert found.reference == "A cup." and found.reasons == ["so", "so"] and not found.problems


def test_names_in_capitals_and_numbers_as_texts_are_numbers():
    one = {"Reason": "so", "Helpfulness": "4", " Correctness ": 3.0, "COHERENCE": 2, "Complexity": 1, "Verbosity": 0}
    found = read({"answers": [one]}, 1)
    assert list(found.scores[0].values()) == [4, 3, 2, 1, 0] and not found.problems and found.reference == ""


@pytest.mark.parametrize("value", [5, -1, 2.5, "high", "4/4", True, [3], {"n": 3}, 10**30, "9" * 5000, 1e400])
def test_what_is_no_number_of_the_range_is_null_and_counted(value):
    found = read({"answers": [answer(Coherence=value), answer()]})
    assert found.scores[0] == {**dict.fromkeys(FIVE, 3), "Coherence": None} and found.scores[1] == dict.fromkeys(
        FIVE, 3
    )
    assert found.foreign == 1 and found.problems == ["answer 1: Coherence is no whole number from 0 to 4"]


def test_four_of_five_metrics_are_four_and_a_null():
    four = answer()
    del four["Verbosity"]
    found = read({"answers": [answer(), four], "reference": "r"})
    assert found.scores[1] == {**dict.fromkeys(FIVE, 3), "Verbosity": None} and found.foreign == 0
    assert found.problems == ["answer 2 has no Verbosity"]
    assert read({"answers": [answer(Verbosity=None), answer()]}).problems == ["answer 1 has no Verbosity"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "the reply is empty"),
        ("I will not rate this.", "no JSON object with answers"),
        ('{"answers": [{"reason": "so", "helpf', "no JSON object with answers"),  # cut
        ({"answers": "good"}, "no JSON object with answers"),
        ({"ratings": [answer(), answer()]}, "no JSON object with answers"),
        ({"answers": [answer()]}, "it rates 1 answers, and was shown 2"),
        ({"answers": [answer()] * 3}, "it rates 3 answers, and was shown 2"),
        ("[" * 100_000, "no JSON object with answers"),
        ('{"answers":' * 50_000, "no JSON object with answers"),
        ('{"answers": [NaN, ' + "9" * 5000 + "]}", "no JSON object with answers"),
    ],
)
def test_what_does_not_say_whose_ratings_they_are_rates_nobody(value, why):
    found = read(value)
    assert why in found.problems[0] and found.scores == [dict.fromkeys(FIVE)] * 2 and found.reasons == ["", ""]


def test_an_answer_that_is_no_object_is_not_rated():
    found = read({"answers": [3, answer()]})
    assert found.scores == [dict.fromkeys(FIVE), dict.fromkeys(FIVE, 3)]
    assert found.problems == [f"answer 1 has no {', '.join(FIVE)}"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["answers", "reference", "reason", "x", *FIVE]), inner, max_size=6)
    ),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(values | texts, st.integers(1, 3))
def test_no_reply_makes_the_judges_parser_raise_or_invent(value, number):
    text = value if isinstance(value, str) else json.dumps({"answers": value})
    found = ratings(text, number, FIVE, 0, 4)
    assert len(found.scores) == len(found.reasons) == number
    said = [v for score in found.scores for v in score.values()]
    assert all(v is None or 0 <= v <= 4 for v in said) and all(list(score) == list(FIVE) for score in found.scores)
    assert bool(found.problems) == (None in said)
    for v in said:
        assert v is None or str(v) in text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({name: st.integers(0, 4) for name in FIVE}), min_size=1, max_size=4), st.text())
def test_what_is_written_is_read(scores, reference):
    text = written(scores, ["r"] * len(scores), reference)
    found = ratings(text, len(scores), FIVE, 0, 4)
    assert found.scores == scores and found.reference == reference.strip() and not found.problems


def test_the_schema_says_all_of_it():
    form = json.loads(schema(2, ("m", "n"), 1, 3))
    number = {"type": "integer", "enum": [1, 2, 3]}
    one = {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "m": number, "n": number},
        "required": ["reason", "m", "n"],  # the reason comes before its numbers
        "additionalProperties": False,
    }
    assert form == {
        "type": "object",
        "properties": {
            "answers": {"type": "array", "items": one, "minItems": 2, "maxItems": 2},
            "reference": {"type": "string"},
        },
        "required": ["answers", "reference"],
        "additionalProperties": False,
    }
    assert list(form["properties"]["answers"]["items"]["properties"]) == ["reason", "m", "n"]
