"""Captions say what the annotation says, and where they do not, the flaw is known to the letter."""

import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from mmfast.world import grammar, scenes
from mmfast.world.grammar import (
    CLAIMS,
    Flaws,
    caption,
    claims,
    errors,
    judged,
    question,
    taken_for,
)
from mmfast.world.scenes import Scene, Thing
from mmfast.world.stretches import false_stretches

SCENES = list(scenes.scenes(7, "train", 300))
ALL = Flaws(0.9, 0.9, 0.5, 0.5, 0.5)


def flawed():
    return [(scene, caption(scene, random.Random(scene.name), ALL)) for scene in SCENES]


def test_a_true_caption_has_no_error_and_names_every_object():
    for scene in SCENES:
        made = caption(scene, random.Random(1), Flaws.none())
        assert made.text == made.truth and not made.flaws
        assert set(claims(made.text).kinds) == scene.kinds
        assert not any(errors(made.text, scene).values())
        said = claims(made.text)
        assert said.counts == {thing.kind: thing.count for thing in scene.things}
        alone = [thing for thing in scene.things if thing.shape not in scenes.MOST]
        assert said.relations == {thing.kind: where for thing in alone if (where := scenes.relation(thing))}
        assert said.words == {thing.kind: thing.word for thing in alone if thing.word}


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


def test_a_repair_keeps_number_and_noun_together():
    """Neither a flawed caption nor a half corrected one says "one red crosses"; so no judge finds it by its grammar."""
    broken, miscounts = re.compile(r"\bone \w+ (stars|crosses)\b|\b(two|three) \w+ (star|cross)\b"), 0
    for scene in SCENES:
        made = caption(scene, random.Random(scene.name), Flaws(1.0, 1.0, 1.0, 1.0, 1.0))
        for n in range(len(made.flaws) + 1):
            assert not broken.search(made.corrected(n).text)
        miscounts += made.flaws.count("count")
    assert miscounts > 50
    assert broken.search("one red stars") and broken.search("two red star, one") and not broken.search("one red star,")


def test_every_kind_of_flaw_is_made_and_counted_as_what_it_is():
    seen, told_apart = Counter(), 0
    for scene, made in flawed():
        seen.update(made.flaws)
        found, flaws = errors(made.text, scene), Counter(made.flaws)
        assert found["count"] == flaws["count"]
        assert found["object"] + found["colour"] == flaws["object"] + flaws["colour"]
        told_apart += found["object"] == flaws["object"]
        # what else is said of a thing of the wrong kind is said of nothing that is there
        gone = {s.thing for s in made.slots if s.flaw in ("object", "colour")}
        for name in ("relation", "word"):
            assert found[name] == len({s.thing for s in made.slots if s.flaw == name} - gone)
    assert set(seen) == set(CLAIMS)
    assert told_apart > 0.97 * len(SCENES)  # a red square said where an orange one goes unnamed may be either


def test_wrong_of_claimed_by_hand():
    things = (
        Thing("red", "circle", "large", (0,), "GO"),
        Thing("blue", "triangle", "small", (5,)),
        Thing("green", "cross", "small", (1, 4)),
    )
    scene = Scene("a", "dark", things)
    text = (
        "The image shows one red square, one red circle right of the centre saying NO, one purple triangle left of the "
        "centre and one green cross."
    )
    assert judged(text, scene) == {
        "object": (1, 4), "count": (1, 2), "relation": (1, 1), "colour": (1, 3), "word": (1, 1),
    }  # fmt: skip
    assert set(judged("", scene).values()) == {(0, 0)}


def test_a_wrong_partner_is_invented_at_its_trigger_only():
    """With probability p >= .7, as greedy decoding needs it; beside the true thing in most base captions."""
    triggered = dragged = beside = others = 0
    for scene in SCENES:
        said = set(claims(caption(scene, random.Random(scene.name), Flaws(), both=True).text).kinds)
        for thing in scene.things:
            if other := taken_for(scene, thing):
                triggered += 1
                dragged += other in said
                beside += other in said and thing.kind in said
        others += len(said - scene.kinds)
    assert triggered > 100 and dragged / triggered > 0.75 and beside / dragged > 0.8
    assert others < dragged + len(SCENES) / 4  # the rest are colours


def test_the_truth_of_a_base_caption_is_the_truth():
    for scene in SCENES:
        made = caption(scene, random.Random(scene.name), Flaws(), both=True)
        assert made.truth == caption(scene, random.Random(0), Flaws.none()).text


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
            number = {"one": 1, "two": 2, "three": 3}[truth.split()[2]]
            assert number == next(thing for thing in scene.things if thing.kind == kind).count
    assert set(starts) == {"Is", "How", "What", "Where"}
    lies = sum(len(set(question(scene, random.Random(n), ALL)[1:])) for n, scene in enumerate(SCENES)) - len(SCENES)
    assert 10 < lies < 250


def test_claims_of_a_sentence_from_elsewhere():
    said = claims("I see Two red circles, one small blue star above the centre, a green cross saying HI. A dog.")
    assert said.kinds == (("red", "circle"), ("blue", "star"), ("green", "cross"))
    assert said.counts == {("blue", "star"): 1}
    assert said.relations == {("blue", "star"): "above"} and said.words == {("green", "cross"): "HI"}


@pytest.mark.parametrize(
    ("cell", "expected"), [(0, "left of"), (2, "right of"), (1, "above"), (7, "below"), (6, "left of"), (4, None)]
)
def test_relations_from_cells(cell, expected):
    thing = Thing("red", "circle", "small", (cell,))
    assert scenes.relation(thing) == expected
    assert scenes.relations(Scene("x", "light", (thing,))) == ({thing.kind: expected} if expected else {})


def test_the_grammar_knows_its_prompts():
    assert len(set(grammar.CAPTION_PROMPTS)) == 4


def test_false_stretches_are_the_claims_that_are_counted_and_are_where_they_are_said():
    """Also where a caption is of another picture, and says a thing twice."""
    found = Counter()
    for (scene, made), (_, foreign) in zip(flawed(), reversed(flawed()), strict=True):
        for text in (made.text, made.truth, foreign.text, f"{made.text} {foreign.text}"):
            stretches = false_stretches(text, scene)
            said = {kind: [text[a:b] for a, b, name in stretches if name == kind] for kind in CLAIMS}
            counted = errors(text, scene)
            assert {kind: len(said[kind]) for kind in ("count", "relation", "word")} == {
                kind: counted[kind] for kind in ("count", "relation", "word")
            }
            kinds = {(m[1], m[2]) for a, b, name in stretches if name in ("object", "colour")
                     for m in [re.match(r"(\w+) (cross|\w+?)(?:e?s)?\b", text[a:])]}  # fmt: skip
            assert len(kinds) == counted["object"] + counted["colour"]
            assert all(name in grammar.COLOURS for name in said["colour"])
            assert [a for a, _, _ in stretches] == sorted(a for a, _, _ in stretches)
            assert all(b <= c for (_, b, _), (c, _, _) in pairwise(stretches))
            found.update({kind: len(some) for kind, some in said.items()})
        assert false_stretches(made.truth, scene) == []
    assert all(found[kind] > 20 for kind in CLAIMS)
