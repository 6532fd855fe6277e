"""No pair of the world can be decided without its picture, and the judge that says so is not blind to a real tell."""

import random
from dataclasses import replace

import pytest

from mmfast.world import probe
from mmfast.world.dataset import WorldSpec, flawed_caption, group_records
from mmfast.world.grammar import EXCHANGED, OPPOSITE, Flaws, caption, miscounted, partner, taken_for
from mmfast.world.scenes import TWINS, Scene, rank, relation, scenes

BAR = 0.60
SEEDS = (0, 1, 2)


def pairs(seed, split, number):
    """As dataset.pair_records makes them."""
    spec = WorldSpec(seed=seed)
    made = (flawed_caption(s, random.Random(f"pair:{seed}:{s.name}"), spec.flaws) for s in scenes(seed, split, number))
    return [(one.truth, one.text) for one in made if one]


@pytest.fixture(scope="module")
def world():
    return {seed: (pairs(seed, "train", 1600), pairs(seed, "test", 300)) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_judge_without_the_picture_cannot_tell_the_pairs(world, seed):
    train, test = world[seed]
    assert len(train) > 1200 and len(test) > 220
    assert probe.accuracy(train, test) <= BAR


@pytest.mark.parametrize("seed", SEEDS)
def test_nor_the_pairs_of_groups(seed):
    """Held-out pictures, not only held-out pairs: the pairs of one picture share their captions."""
    spec = WorldSpec(seed=seed)
    train, test = (
        probe.texts([r for scene in scenes(seed, split, number) for r in group_records(scene, spec)])
        for split, number in (("train", 200), ("test", 200))
    )
    assert len(train) > 1000 and len(test) > 1000
    assert probe.accuracy(train, test) <= BAR


def test_all_pairs_have_as_many_words_on_both_sides(world):
    for train, test in world.values():
        assert all(len(chosen.split()) == len(rejected.split()) for chosen, rejected in (*train, *test))


@pytest.mark.parametrize(
    ("tell", "at_least"),
    [
        (lambda good, bad, n: (good.replace(".", " and some patches of nothing.") if n % 4 == 0 else good, bad), 0.6),
        (lambda good, bad, n: (good.replace("The image", "An image") if n % 2 else good, bad), 0.7),
        (lambda good, bad, n: (good, bad.replace(" the centre", "") if n % 2 else bad), 0.62),  # shorter, no new word
        (lambda good, bad, n: (good, bad.replace("one", "two", 1)), 0.7),
        (lambda good, bad, n: (good.replace("below", "above"), bad.replace("above", "below")), 0.62),
    ],
)
def test_the_judge_finds_a_planted_tell(world, tell, at_least):
    train, test = ([tell(*pair, n) for n, pair in enumerate(part)] for part in world[0])
    assert probe.accuracy(train, test) > at_least


def exchanged(scene: Scene) -> Scene:
    """The scene of which the fully flawed caption would be the truth."""
    things = []
    for thing in scene.things:
        other = taken_for(scene, thing)
        if other:
            thing = replace(thing, shape=other[1])
        if thing.shape == "cross" and miscounted(thing) != thing.count:
            size = {"small": "large", "large": "small"}[thing.size]
            thing = replace(thing, size=size, cells=(0,) if thing.count == 2 else (0, 1))
        if thing.shape == "triangle":
            row, column = divmod(thing.cells[0], 3)
            at = 3 * row + 2 - column if column != 1 else 3 * (2 - row) + column
            twin = TWINS[thing.colour]
            small = thing.size == "small" and scene.background == "dark" and (twin, "triangle") not in scene.kinds
            thing = replace(thing, cells=(at,), colour=twin if small else thing.colour)
            thing = replace(thing, word=EXCHANGED[thing.word] if thing.word else None)
        things.append(thing)
    return replace(scene, things=tuple(sorted(things, key=lambda thing: rank(thing.kind))))


def test_every_flaw_is_undone_by_itself_and_changes_no_trigger():
    """The principle: exchange what the flaws exchange, and the flawed caption is true while the true one is flawed."""
    every, changed = Flaws(1.0, 1.0, 1.0, 1.0, 1.0), 0
    for scene in scenes(4, "train", 1500):
        made, back = (caption(s, random.Random(0), every) for s in (scene, exchanged(scene)))
        assert (back.truth, back.text) == (made.text, made.truth)
        assert sorted(back.flaws) == sorted(made.flaws)
        changed += bool(made.flaws)
    assert changed > 1000


def test_scenes_are_alike_under_every_exchange():
    """Truths name both things of every exchange as often as each other, within five standard errors."""
    seen = {}
    for scene in scenes(9, "train", 6000):
        for thing in scene.things:
            seen[thing.shape] = seen.get(thing.shape, 0) + 1
            for key in (thing.colour, thing.word, (thing.shape, thing.size, thing.count)):
                seen[key] = seen.get(key, 0) + 1
            if thing.shape == "triangle":
                seen[relation(thing)] = seen.get(relation(thing), 0) + 1
    exchanges = [*TWINS.items(), *EXCHANGED.items(), *OPPOSITE.items(), ("circle", "square")]
    exchanges.append((("cross", "small", 1), ("cross", "large", 2)))
    for a, b in exchanges:
        assert abs(seen[a] - seen[b]) < 5 * (seen[a] + seen[b]) ** 0.5, (a, b, seen[a], seen[b])
    assert all(partner((c, "circle")) == (c, "square") and partner((c, "square")) == (c, "circle") for c in TWINS)
