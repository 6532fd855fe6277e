"""Replies of decomposing models: each system's to its letter, ours without inventions, whatever is written."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.feedback.items import ASPECTS, SIZES, Item, item_of, quoted
from mmfast.feedback.parsers import (
    COUNTS,
    PARSERS,
    Pieces,
    brackets,
    brackets_compat,
    bullets,
    bullets_compat,
    claims_of,
    shape,
    written,
)
from mmfast.feedback.prompts import known, prompt

# aspect, reply -> as DGPref reads it, as we do (None: not readable); malformed pieces of ours
DGPREF = [
    ("attribute", "[ATTR]: (brown, dog); (red, bucket)", [("brown", "dog"), ("red", "bucket")], "same", 0),
    ("attribute", "(red, red); (wooden, bench)", [("wooden", "bench")], "same", 1),
    ("attribute", "NONE", [], "same", 0),
    ("attribute", "none.", [], "same", 0),
    ("attribute", "(a, b, c)", [], None, 0),
    ("attribute", "(brown,dog)", [], [("brown", "dog")], 0),
    (
        "count",
        "(two, buckets); (3, kites)",
        [("two", "buckets"), ("three", "kites")],
        [("two", "buckets"), ("3", "kites")],
        0,
    ),
    ("count", "(several, dogs); (twenty, birds)", [("twenty", "birds")], "same", 1),
    ("count", "(one, dog)", [], [("one", "dog")], 0),
    ("entity", "Here it is: (dog, bucket)", [("dog",), ("bucket",)], "same", 0),
    ("entity", "(dog, bucket); (cat)", [("dog",), ("bucket",)], [("dog",), ("bucket",), ("cat",)], 0),
    ("entity", "dog, cat", [("dog",), ("cat",)], None, 0),
    ("entity", "NONE", [("NONE",)], [], 0),
    ("entity", "(NONE)", [("NONE",)], [], 0),
    ("relation", "(dog, beside, bucket)", [("dog", "beside", "bucket")], "same", 0),
    ("relation", "(dog, beside, bucket); (dog, lyi", [("dog", "beside", "bucket")], "same", 1),
    ("relation", "time: 10:30 (hut, left of, image)", [("hut", "left of", "image")], "same", 0),
    ("relation", "I am sorry, I cannot see the picture.", [], None, 0),
    ("relation", "", [], None, 0),
]


@pytest.mark.parametrize(("aspect", "reply", "theirs", "ours", "malformed"), DGPREF)
def test_brackets_to_the_letter_and_ours(aspect, reply, theirs, ours, malformed):
    assert list(brackets_compat(reply, aspect).found) == theirs
    found = brackets(reply, aspect)
    if ours is None:
        assert found is None
    else:
        assert list(found.found) == (theirs if ours == "same" else ours) and found.malformed == malformed


RLAIFV = [
    ("- a dog\n- a cat", ["a dog", "a cat"], ["a dog", "a cat"], 0),
    ("### Facts:\n\n- A dog sits.\n- It rains.", ["A dog sits.", "It rains."], ["A dog sits.", "It rains."], 0),
    ("1. A dog.\n2) A cat.", [". A dog.", ") A cat."], ["A dog.", "A cat."], 0),
    ("Facts:\n* A dog.\nThat is all.", ["acts:", "A dog.", "hat is all."], ["A dog."], 1),
    ("NONE", ["ONE"], [], 0),
    ("Sorry, no.", ["orry, no."], None, 0),
    ("", [], None, 0),
    ("- 3.5 metres of rope", ["3.5 metres of rope"], ["3.5 metres of rope"], 0),
]


@pytest.mark.parametrize(("reply", "theirs", "ours", "malformed"), RLAIFV)
def test_bullets_to_the_letter_and_ours(reply, theirs, ours, malformed):
    assert [line for (line,) in bullets_compat(reply).found] == theirs
    found = bullets(reply)
    assert (found and [line for (line,) in found.found]) == ours
    assert found is None or found.malformed == malformed


def test_the_last_piece_of_a_cut_reply_is_left_out_and_counted():
    assert bullets("- A dog.\n- A ca", cut=True) == Pieces((("A dog.",),), 1)
    assert bullets("- A do", cut=True) is None
    assert brackets("(red, dog); (blue, ca", "attribute", True) == Pieces((("red", "dog"),), 1)


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            ["(", ")", ", ", ",", ";", ":", "\n", "- ", "1. ", "NONE", "###", '"', "dog", "two", "3", "犬", "🐶"]
        ),
        max_size=25,
    ).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(ASPECTS), st.sampled_from(sorted(PARSERS)), st.booleans())
def test_no_reply_raises_and_no_word_is_invented(reply, aspect, name, cut):
    pieces = PARSERS[name](reply, aspect, cut)
    if pieces is None:
        assert not name.endswith("_compat")
        return
    size = SIZES[aspect] if name.startswith("brackets") else 1
    words = set(re.findall(r"\w+", reply))
    for piece in pieces.found:
        assert len(piece) == size
        for part in piece:
            assert not part or part in reply or set(re.findall(r"\w+", part)) <= words | COUNTS
            assert name.endswith("_compat") or part.strip()
        if name.startswith("brackets"):
            item = item_of(aspect, piece, compat=name.endswith("_compat"))
            assert Item.of(item.row()) == item
    assert pieces.malformed >= 0
    quoted(reply), quoted(reply, compat=True)


SIGNS = st.characters(exclude_characters="(),\n\r\"'“”", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"])
PARTS = st.tuples(st.text(SIGNS, max_size=4), st.text(SIGNS, max_size=4)).map("q".join)  # a letter at least


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([aspect for aspect in ASPECTS if aspect not in ("count", "text")]))
def test_what_is_written_is_read_back(data, aspect):
    pieces = data.draw(st.lists(st.tuples(*[PARTS] * SIZES[aspect]), max_size=4, unique=True))
    pieces = [p for p in pieces if aspect != "attribute" or p[0].casefold() != p[1].casefold()]
    said = written(aspect, pieces)
    assert re.fullmatch(shape(aspect), said)
    if ":" not in said:
        assert brackets(said, aspect) == Pieces(tuple(pieces))


def test_shapes_hold_replies_to_what_the_parsers_read():
    assert re.fullmatch(shape("claims"), "- A dog.\n- A cat.") and re.fullmatch(shape("claims"), "NONE")
    assert re.fullmatch(shape("questions", 2), "- Is it?\n- Is it not?")
    assert not re.fullmatch(shape("questions", 2), "- Is it?") and not re.fullmatch(shape("questions", 1), "NONE")
    assert re.fullmatch(shape("count"), "(two, dogs); (three, cats)") and not re.fullmatch(shape("count"), "(two dogs)")


def test_the_parsers_read_what_the_prompts_show():
    for name in [name for name in known() if name.startswith(("decompose", "split", "claim"))]:
        own = prompt(name, parsers=PARSERS)
        aspect = name.removeprefix("decompose_").replace("written", "text")
        for shown in own.wording.demonstrations:
            pieces = PARSERS[own.wording.parser](shown["reply"].strip(), aspect, False)
            assert pieces is not None and not pieces.malformed
            assert bool(pieces.found) == (shown["reply"] != "NONE")
            assert re.fullmatch(shape(aspect.replace("split_", "")), shown["reply"].strip())


# items


@pytest.mark.parametrize(
    ("aspect", "piece", "kind", "args", "question"),
    [
        ("entity", ("dog",), "object", ("dog",), "Is there a dog?"),
        ("entity", ("orange",), "object", ("orange",), "Is there an orange?"),
        ("entity", ("dogs",), "object", ("dogs",), "Are there dogs?"),
        ("entity", ("glass",), "object", ("glass",), "Is there a glass?"),
        ("attribute", ("brown", "dog"), "attribute", ("brown", "dog"), "Is the dog brown?"),
        ("attribute", ("brown", "two dogs"), "attribute", ("brown", "two dogs"), "Are the two dogs brown?"),
        ("attribute", ("huge", "dog"), "scale", ("large", "dog"), "Is the dog huge?"),
        ("attribute", ("high", "tower"), "scale", ("tall", "tower"), "Is the tower high?"),
        ("count", ("3", "kites"), "count", ("three", "kites"), "Are there three kites?"),
        (
            "relation",
            ("boy", "holding", "kite"),
            "relation",
            ("boy", "holding", "kite"),
            "Is the boy holding the kite?",
        ),
        ("relation", ("hut", "to the left of", "image"), "spatial", ("hut", "left", "image"), None),
        ("relation", ("cup", "on top of", "table"), "spatial", ("cup", "top", "table"), None),
        ("relation", ("cup", "underneath", "table"), "spatial", ("cup", "bottom", "table"), None),
        ("relation", ("dog", "next to", "cat"), "spatial", ("dog", "near", "cat"), None),
        ("relation", ("dog", "beside", "cat"), "relation", ("dog", "beside", "cat"), None),
        ("relation", ("car", "stopped by", "man"), "relation", ("car", "stopped by", "man"), None),
        ("text", ("OPEN",), "text", ("OPEN",), 'Does the picture show the text "OPEN"?'),
    ],
)
def test_pieces_become_items_of_the_right_kind(aspect, piece, kind, args, question):
    item = item_of(aspect, piece)
    assert (item.kind, item.args) == (kind, args) and question in (None, item.question)


def test_dgpref_to_the_letter_asks_of_one_and_looks_for_letters():
    assert item_of("attribute", ("brown", "dogs"), compat=True).question == "Is the dogs brown?"
    assert item_of("relation", ("car", "stopped by", "man"), compat=True).args == ("car", "top", "man")
    assert item_of("relation", ("boy", "holding", "kite"), compat=True).question == "Is the boy holding kite?"


def test_quotations():
    text = 'A sign says "OPEN" and “Go on”; 「犬」, and again "OPEN", and "" and one that " never ends'
    assert quoted(text) == ["OPEN", "Go on", "犬"]
    assert quoted('"a" "b"', compat=True) == ["a", "b"]
    assert quoted("it's the dog's 'bone'") == []


def test_claims_and_questions_of_unequal_number_stay_apart():
    claims = claims_of(["A dog.", "No cat."], ["Is there a dog?", "Is there a cat? (no)"])
    assert [(c.question, c.negated) for c in claims] == [("Is there a dog?", False), ("Is there a cat?", True)]
    assert [c.question for c in claims_of(["A dog.", "A cat."], ["Is there a dog?"])] == ["", ""]
    assert claims[0].name != claims[1].name
