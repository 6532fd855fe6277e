"""Spans: the characters that a claim came from, in code points."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.data.text.segments import claim_segments, sentences
from mmfast.feedback.spans import forms, plural, same, span_of

ANSWER = (
    "A brown dog lies beside two red buckets. The blue car and a red car stand near a blue bucket, and 🐶 children's "
    "toys lie around 3 kites."
)


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        ("dog", "dog"),
        ("brown dog", "brown dog"),
        ("The dog is brown.", "brown dog"),  # reworded
        ("red bucket", "red buckets"),  # plural; the nearest words, not "red ... bucket"
        ("blue bucket", "blue bucket"),  # a repeat: the second bucket
        ("two buckets", "two red buckets"),
        ("2 buckets", "two red buckets"),
        ("three kites", "3 kites"),
        ("dog beside bucket", "dog lies beside two red buckets"),
        ("The car is blue", "blue car"),
        ("a red car", "a red car"),
        ("child", "children's"),
        ("toy lying", "toys lie"),
        ("🐶", "🐶"),
        ("There is a puppy.", None),
        ("The image shows it.", None),
        ("", None),
        ("A cat sleeps peacefully on a sofa near cars", ANSWER[41:]),  # little of it: the sentence
    ],
)
def test_claims_find_their_words(claim, found):
    span = span_of(ANSWER, claim)
    assert (span and ANSWER[slice(*span)]) == found


@pytest.mark.parametrize(
    ("answer", "claim", "found"),
    [
        ("図には赤い車があります。青い犬がいます。", "青い犬", "青い犬"),
        ("図には赤い車があります。青い犬がいます。", "犬は青い", "青い犬"),
        ("红色的车，蓝色的狗。", "蓝色的狗", "蓝色的狗"),
        ("A cafe\u0301 sign and a cafe.", "café", "cafe\u0301"),  # an accent of its own
        ("👩‍👩‍👧 wave; Dogs run", "dog", "Dogs"),
        ("A sign of the STRASSE", "Straße", "STRASSE"),
        ("Two ﬁsh swim", "fish", "ﬁsh"),
        ("Die Straße ist naß", "straße", "Straße"),
        ("İstanbul DOG", "dog", "DOG"),
        ("The catalogue lists a cat.", "cat", "cat"),
        ("dogs? dogs! a dog", "dogs", "dogs"),
    ],
)
def test_any_script(answer, claim, found):
    span = span_of(answer, claim)
    assert span is not None and answer[slice(*span)] == found


def test_a_repeat_is_told_by_what_stands_beside_it():
    answer = "one red star, two red circles and one blue circle"
    assert span_of(answer, "one circle") == (answer.index("one blue"), len(answer))
    assert span_of(answer, "two circles") == (answer.index("two"), answer.index(" and"))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.text(max_size=20))
def test_a_span_lies_in_its_answer_and_shares_a_word(answer, claim):
    span = span_of(answer, claim)
    if span is not None:
        assert 0 <= span[0] < span[1] <= len(answer)
    if claim.strip() and claim in answer and claim == claim.strip() and not (claim[0].isalnum() or claim[-1].isalnum()):
        assert span is not None


@settings(max_examples=200, deadline=None)
@given(st.text("ab ", max_size=12), st.text(max_size=10))
def test_code_points_are_counted(words, before):
    """What stands before an answer moves its spans by its length, in code points."""
    answer = "a brown dog"
    clean = "".join(
        sign for sign in before if not sign.isalnum() and sign not in "'’.!?。！？\u0300\u200d" and sign != "_"
    )
    clean = "".join(sign for sign in clean if not "\u0300" <= sign <= "\u036f")
    span = span_of(clean + " " + answer, "brown dog")
    assert span == (len(clean) + 3, len(clean) + 12)


EQUAL = "buses bus, knives knife, berries berry, holding hold, sitting sits, riding ride, parked park, women woman, "
EQUAL += "glasses glass, Dog's dog, two 2, boxes box, lying lie, twenty 20, potatoes potato"
OTHER = "red reed, king kin, bus bu, gas ga, cat car, one two, glass glas"


def test_forms_of_a_word():
    for pairs, equal in ((EQUAL, True), (OTHER, False)):
        for one, other in map(str.split, pairs.split(", ")):
            assert same(one, other) == same(other, one) == equal, (one, other)
            assert forms(one)


def test_plurals():
    assert all(map(plural, ["dogs", "two dogs", "children", "glasses", "red buses"]))
    assert not any(map(plural, ["dog", "glass", "bus", "one dog", "grass", "tennis", ""]))


def test_sentences_are_those_that_claims_weigh():
    text = "A dog. It costs 3.5 dollars! 犬がいる。終わり"
    assert [text[a:b] for a, b in sentences(text)] == ["A dog.", "It costs 3.5 dollars!", "犬がいる。", "終わり"]
    assert claim_segments(text, [("dollars", False)], wrong=2.0) == [(7, 28, 2.0)]
