"""Captions say what the annotation says, and where they do not, the flaw is known to the letter."""

import random
from collections import Counter

import pytest

from mmfast.world import grammar, scenes
from mmfast.world.grammar import Flaws, caption, claims, errors, partner, question
from mmfast.world.scenes import Scene, Thing

SCENES = list(scenes.scenes(7, "train", 300))
ALL = Flaws(0.9, 0.9, 0.3, 0.9, 0.5)


def flawed():
    return [(scene, caption(scene, random.Random(scene.name), ALL)) for scene in SCENES]


def test_a_true_caption_has_no_error_and_names_every_object():
    for scene in SCENES:
        made = caption(scene, random.Random(1), Flaws.none())
        assert made.text == made.truth and not made.flaws
        assert set(claims(made.text).kinds) == scene.kinds
        assert not any(errors(made.text, scene).values())
        assert claims(made.text).counts == {thing.kind: thing.count for thing in scene.things}
        assert claims(made.text).sizes == {thing.kind: thing.size for thing in scene.things}


def test_the_corrected_caption_is_true_and_as_long():
    for scene, made in flawed():
        assert not any(errors(made.truth, scene).values())
        assert len(made.text.split()) == len(made.truth.split())
        assert [len(s.text.split()) for s in made.slots] == [len(s.truth.split()) for s in made.slots]


def test_spans_cut_out_exactly_the_flawed_words():
    for _, made in flawed():
        for side, text in (("text", made.text), ("truth", made.truth)):
            spans = made.spans(side)
            expected = [s.text if side == "text" else s.truth for s in made.slots if s.flaw]
            assert [text[a:b] for a, b in spans] == expected
        outside = [slot.text for slot in made.slots if not slot.flaw]
        assert outside == [slot.truth for slot in made.slots if not slot.flaw]


def test_correcting_flaws_one_by_one_ends_at_the_truth():
    for _, made in flawed():
        left = [len(made.corrected(n).flaws) for n in range(len(made.flaws) + 1)]
        assert left == list(range(len(made.flaws), -1, -1))
        assert made.corrected(99).text == made.truth


def test_every_kind_of_flaw_is_made_and_counted_as_what_it_is():
    seen = Counter()
    for scene, made in flawed():
        seen.update(set(made.flaws))
        found = errors(made.text, scene)
        assert bool(found["object"]) == bool({"object", "colour"} & set(made.flaws)) or "colour" in made.flaws
        if "colour" not in made.flaws:  # a wrong colour makes later sentences speak of other things
            assert bool(found["count"]) == ("count" in made.flaws)
            assert bool(found["relation"]) == ("relation" in made.flaws)
            assert bool(found["word"]) == ("word" in made.flaws)
    assert set(seen) == {"object", "colour", "count", "relation", "word"}


def test_a_present_object_drags_in_its_absent_partner():
    """With probability p >= .7, as greedy decoding needs it; the partner is never one that is there."""
    dragged = triggered = 0
    for scene in SCENES:
        said = set(claims(caption(scene, random.Random(scene.name), Flaws()).text).kinds)
        for thing in scene.things:
            invented = partner(thing.kind)
            if invented and invented not in scene.kinds:
                triggered += 1
                dragged += invented in said
    assert triggered > 150 and dragged / triggered > 0.75


def test_answers():
    rng = random.Random(3)
    starts = Counter()
    for scene in SCENES:
        asked, answer, truth = question(scene, rng, Flaws.none())
        assert answer == truth
        starts[asked.split()[0]] += 1
        if asked.startswith("Is there"):
            (kind,) = claims(asked).kinds
            assert truth.startswith("Yes") == (kind in scene.kinds)
        if asked.startswith("How many"):
            (kind,) = claims(asked).kinds
            number = {"one": 1, "two": 2}[truth.split()[2]]
            assert number == scene.thing(kind).count
    assert set(starts) == {"Is", "How", "What", "Where"}
    lies = sum(len(set(question(scene, random.Random(n), ALL)[1:])) for n, scene in enumerate(SCENES)) - len(SCENES)
    assert 10 < lies < 250


def test_claims_of_a_sentence_from_elsewhere():
    said = claims("I see Two red circles and a small blue star; the red circle is above the blue star. A dog.")
    assert said.kinds == (("red", "circle"), ("blue", "star"))
    assert said.counts == {("blue", "star"): 1} and said.sizes == {("blue", "star"): "small"}
    assert said.relations == ((("red", "circle"), "above", ("blue", "star")),)


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(0, 2, "left of"), (2, 0, "right of"), (1, 7, "above"), (8, 5, "below"), (6, 1, "left of")]
)
def test_relations_from_cells(a, b, expected):
    first, second = Thing("red", "circle", "small", (a,)), Thing("blue", "star", "small", (b,))
    assert scenes.relation(first, second) == expected
    assert (first.kind, expected, second.kind) in scenes.relations(Scene("x", "light", (first, second)))


def test_the_grammar_knows_its_prompts():
    assert len(set(grammar.CAPTION_PROMPTS)) == 4
