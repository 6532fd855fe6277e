"""Flat arrays in place of Example objects: cut, joined and picked ones plan and pack as the objects do, to the bit."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mmfast.data.symbols import Symbols, collapse, join, response_key
from mmfast.packing import Plan, PlanSettings, build_pack
from tests.make.packing_cases import KINDS, random_case

FIRST = next(iter(KINDS))
SETTINGS = PlanSettings(pairs_per_step=5, tokens_per_pack=512)


class Stored:
    """What a store is to planning and packing."""

    def __init__(self, symbols: Symbols):
        self.symbols = symbols

    def __len__(self) -> int:
        return len(self.symbols)

    def __getitem__(self, index: int):
        raise AssertionError("no Example is built")


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return a == b


def numbers_of(step) -> list[list[list[int]]]:
    return [[pack.tolist() for pack in rank] for rank in step.packs]


def stored(case, parts: int) -> Symbols:
    """As a build leaves them: flattened in parts, then joined."""
    pieces = np.array_split(np.arange(len(case.examples)), parts)
    some = [[case.examples[n] for n in piece] for piece in pieces]
    return join([collapse(examples, case.images, case.layout.image_token_id) for examples in some])


@pytest.mark.parametrize("kind", KINDS)
def test_packs_of_arrays_are_those_of_objects(kind):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        case = random_case(rng, kind)
        symbols = stored(case, 1 + seed % 3)
        numbers = rng.permutation(len(case.examples))[: 1 + seed % len(case.examples)]
        a = build_pack([case.examples[n] for n in numbers], case.images, case.layout, gamma=2.5)
        b = build_pack(symbols.cut(numbers), case.images, case.layout, gamma=2.5)
        assert [f.name for f in fields(a) if not equal(getattr(a, f.name), getattr(b, f.name))] == []


@pytest.mark.parametrize("kind", KINDS)
def test_plans_of_arrays_are_those_of_objects(kind):
    for seed in range(8):
        case = random_case(np.random.default_rng(seed), kind)
        by_hand = Plan(case.examples, case.images, case.layout, SETTINGS, gamma=2.5)
        flat = Plan(Stored(stored(case, 1 + seed % 3)), case.images, case.layout, SETTINGS, gamma=2.5)
        assert flat.steps_per_epoch == by_hand.steps_per_epoch
        for epoch in range(2):
            for step in range(flat.steps_per_epoch):
                a, b = by_hand.step(epoch, step, 2), flat.step(epoch, step, 2)
                plain = [f.name for f in fields(a) if f.name != "packs"]
                assert [name for name in plain if not equal(getattr(a, name), getattr(b, name))] == []
                assert numbers_of(a) == numbers_of(b)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_comes_back_as_it_was(kind):
    case = random_case(np.random.default_rng(3), kind)
    symbols, token = stored(case, 2), case.layout.image_token_id
    for e, example in enumerate(case.examples):
        assert symbols.name(e) == (example.id, example.source)
        for side, branch in zip(symbols.branch_of[e].tolist(), (example.chosen, example.rejected), strict=True):
            if branch is None:
                assert side == -1
                continue
            back = symbols.branch(side, token)
            assert symbols.key(side) == response_key(back) == response_key(branch)
            assert [f.name for f in fields(back) if not equal(getattr(back, f.name), getattr(branch, f.name))] == []


def test_repeated_and_left_out_examples_are_those_of_the_list():
    """Mixing weights: an example twice, another not at all."""
    case = random_case(np.random.default_rng(5), FIRST)
    order = np.asarray([1, 1, 0, *range(3, len(case.examples))])
    symbols = stored(case, 1).pick(order)
    by_hand = Plan([case.examples[n] for n in order], case.images, case.layout, SETTINGS)
    flat = Plan(Stored(symbols), case.images, case.layout, SETTINGS)
    for step in range(flat.steps_per_epoch):
        a, b = by_hand.step(0, step, 2), flat.step(0, step, 2)
        assert numbers_of(a) == numbers_of(b)
    assert [symbols.name(e)[0] for e in range(len(symbols))] == [case.examples[n].id for n in order]


def test_names_may_hold_anything():
    case = random_case(np.random.default_rng(0), FIRST)
    odd = replace(case.examples[0], id="é\ud800\0x", source="")
    assert collapse([odd], case.images, case.layout.image_token_id).name(0) == ("é\ud800\0x", "")


def test_planning_holds_less_than_a_kilobyte_an_example():
    """Of its own, on mapped arrays: a million pairs are planned in a gigabyte, on each rank."""
    case = random_case(np.random.default_rng(0), FIRST)
    symbols = collapse(case.examples, case.images, case.layout.image_token_id)
    count = 20_000
    mapped = Stored(join([symbols] * (count // len(symbols) + 1)))
    tracemalloc.start()
    plan = Plan(mapped, case.images, case.layout, SETTINGS)
    plan.step(0, 0)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / plan.examples < 500 and most / plan.examples < 1000, (held / plan.examples, most / plan.examples)
