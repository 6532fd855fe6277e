"""The letter that an answer means: VLMEvalKit's rule of today and that of 2023, phrase by phrase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast.evals.letters import RULES, alone, of_2023, today
from tests.make.marking import golden

INPUTS, EXPECTED = golden("mmbench/inputs.json"), golden("mmbench/expected.json")
CHOICES = INPUTS["choices"]


@pytest.mark.parametrize(
    ("rule", "name"), [(today, "can_infer"), (of_2023, "can_infer_original_2023_rule_as_in_lmms_eval")]
)
def test_the_official_verdicts(rule, name):
    assert {text: rule(text, CHOICES) or False for text in INPUTS["texts"]} == EXPECTED[name]


def test_where_they_differ():
    differ = {t: [today(t, CHOICES) or False, of_2023(t, CHOICES) or False] for t in INPUTS["texts"]}
    assert {text: told for text, told in differ.items() if told[0] != told[1]} == EXPECTED["verdicts_that_differ"]


def test_found_beside_the_official_code():
    """Verdicts of 100,000 made-up texts were compared with both official functions; these are of the kinds in them."""
    two = {"A": "yes", "B": "no"}
    assert today("answer is d", CHOICES) == "D" and today("the answer is D", two) == ""
    assert today("B x y z v", CHOICES) == "" and today("B x y z", CHOICES) == "B"
    assert of_2023("E", two) == "E" and of_2023("A cat is here (B)", CHOICES) == "B"
    assert today("yes " * 6, two) == "" and of_2023("yes " * 6, two) == "A"  # too long for today's rule
    assert alone("A dog", CHOICES) == "" and alone("(C)", CHOICES) == "C" and alone("I'd take D.", CHOICES) == "D"


@given(st.text(), st.dictionaries(st.sampled_from("ABCD"), st.text(), max_size=4))
def test_no_answer_is_too_odd(text, choices):
    for rule in (*RULES.values(), alone):
        assert rule(text, choices) in ("", "Z", *"ABCDE")
