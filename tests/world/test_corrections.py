"""A caption corrected has no false claim left, and is else the same."""

from __future__ import annotations

import itertools
import random

import pytest

from mmfast.world.corrections import Repair, corrected, items_of, repairs
from mmfast.world.grammar import NUMBERS, OPPOSITE, Flaws, caption, claims, errors, judged
from mmfast.world.scenes import COLOURS, SHAPES, WORDS, Scene, Thing, relations, scenes

SCENES = list(scenes(5, "train", 400))
SCENE = Scene(
    "one", "light",
    (
        Thing("red", "circle", "large", (5,), "GO"),
        Thing("green", "triangle", "small", (4,)),
        Thing("blue", "cross", "small", (0, 1)),
    ),
)  # fmt: skip


def wild(rng: random.Random) -> str:
    """Any caption that the grammar reads: kinds drawn freely, some twice, numbers left out or not fitting the noun."""
    said = []
    for _ in range(rng.randint(1, 5)):
        number, shape = rng.choice([*NUMBERS.values(), ""]), rng.choice(SHAPES[:3] if rng.random() < 0.7 else SHAPES)
        plural = rng.random() < 0.2 or (number not in ("", "one") and rng.random() < 0.8)
        noun = shape + (("es" if shape.endswith("s") else "s") if plural else "")
        size = rng.choice(["", "", "small ", "large "])
        one = f"{number} {size}{rng.choice(tuple(COLOURS))} {noun}".strip()
        one += f" {rng.choice(tuple(OPPOSITE))} the centre" * (rng.random() < 0.5)
        said.append(one + f" saying {rng.choice(WORDS)}" * (rng.random() < 0.4))
        if rng.random() < 0.15:
            said.append(said[-1])
    joints = [", "] * (len(said) - 2) + [rng.choice([" and ", ", "])]
    text = said[0] + "".join(joint + one for joint, one in zip(joints, said[1:], strict=False))
    return f"The image shows {text}."


def held(text: str, scene: Scene) -> set[tuple]:
    """The true claims of a caption."""
    said, things = claims(text), {thing.kind: thing for thing in scene.things}
    places = relations(scene)
    out: set[tuple] = {("object", kind) for kind in said.kinds if kind in things}
    out |= {("count", k, n) for k, n in said.counts.items() if k in things and things[k].count == n}
    out |= {("relation", k, where) for k, where in said.relations.items() if places.get(k) == where}
    return out | {("word", k, word) for k, word in said.words.items() if k in things and things[k].word == word}


def holds(text: str, scene: Scene) -> list[Repair]:
    """Everything that is promised of one caption."""
    found = repairs(text, scene)
    assert found is not None
    after = corrected(text, found)
    assert not any(errors(after, scene).values()), (text, after)
    assert (after == text) == (not found) == (not any(errors(text, scene).values())), (text, after)
    assert held(text, scene) <= held(after, scene), (text, after)  # what was true is still said
    assert repairs(after, scene) == []
    assert items_of(after) and "  " not in after
    for one, other in itertools.pairwise(found):
        assert one.end <= other.start
    assert all(text[one.start : one.end] != one.text for one in found)
    return found


@pytest.mark.parametrize("both", [False, True])
def test_the_worlds_own_flaws_are_repaired_to_the_truth(both):
    alike = flawed = 0
    for n, scene in enumerate(SCENES * 3):
        made = caption(scene, random.Random(n), Flaws(), both=both)
        found = holds(made.text, scene)
        kinds = {one.flaw for one in found}
        flawed += bool(made.flaws)
        same = corrected(made.text, found) == made.truth
        alike += same and bool(made.flaws)
        assert not same or kinds == set(made.flaws), made
    assert flawed > 300 and alike >= 0.99 * flawed  # where two things could each be meant, another may be taken


@pytest.mark.parametrize("seed", range(4))
def test_any_caption_that_the_grammar_reads_is_right_afterwards(seed):
    rng = random.Random(seed)
    seen = {flaw for _ in range(1500) for flaw in {one.flaw for one in holds(wild(rng), rng.choice(SCENES))}}
    assert seen == {"object", "count", "relation", "colour", "word"}


@pytest.mark.parametrize(
    ("text", "after"),
    [
        # taken for its partner; what is said of it is mended too
        ("one red square left of the centre saying NO", "one red circle right of the centre saying GO"),
        # beside the true thing it goes, first, in the middle and last
        ("one red square, one red circle and two blue crosses", "one red circle and two blue crosses"),
        ("one red circle, one red square and two blue crosses", "one red circle and two blue crosses"),
        ("one red circle, two blue crosses and one red star", "one red circle and two blue crosses"),
        ("one red star and one red circle", "one red circle"),
        ("one red star, one blue star and one red circle", "one red circle"),
        # the twin in colour
        ("one yellow triangle", "one green triangle"),
        ("two purple crosses and two blue crosses", "two blue crosses"),
        # a count takes the noun along; what can be said of no single place goes
        ("one blue cross left of the centre", "two blue crosses"),
        ("one green triangle below the centre saying OK", "one green triangle"),
        ("three green triangles left of the centre", "one green triangle"),
        # nothing of it is there: what is there is said
        ("two orange stars and one purple star", "one red circle"),
    ],
)
def test_repairs_by_hand(text, after):
    whole = f"The image shows {text}."
    assert corrected(whole, holds(whole, SCENE)) == f"The image shows {after}."


def test_what_is_no_caption_is_left_alone():
    for text in ("", "It is in the top left.", "The image shows", "The image shows one red circle", "The image shows .",
                 "The image shows one red circle. And more.", "A red circle.", "The image shows one pink circle.",
                 "The image shows one red circle , two blue crosses."):  # fmt: skip
        assert repairs(text, SCENE) is None, text


def test_an_overlooked_claim_stays_as_it_is():
    rng, drawn = random.Random(0), random.Random(1)
    left = wrong = 0
    for _ in range(1500):
        text, scene = wild(rng), rng.choice(SCENES)
        found = repairs(text, scene, lambda: drawn.random() < 0.5)
        assert repairs(text, scene, lambda: True) == []
        after = corrected(text, found)
        assert items_of(after)
        assert held(text, scene) <= held(after, scene)
        left += sum(errors(after, scene).values())
        wrong += sum(w for w, _ in judged(text, scene).values())
    assert 0.2 * wrong < left < 0.7 * wrong
