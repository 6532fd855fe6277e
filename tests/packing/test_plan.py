"""The plan of an epoch: every pair once, within the budget, in an order that is fixed for good."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.data.symbols import collapse
from mmfast.packing import Layout, Plan, PlanSettings, build_pack
from mmfast.packing.cost import UNIT, Cost
from mmfast.packing.order import blocks, groups, permutation
from tests.make.packing_cases import KINDS, Case, random_case, random_mixture

COST = Cost(attention=0.01, head=0.1, vision=0.3)


def mixture(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    return random_mixture(rng, [str(k) for k in rng.choice([k for k in KINDS if k != "sft"], 5)])


def largest_pair(case: Case) -> int:
    return max(len(build_pack([e], case.images, case.layout).tokens) for e in case.examples)


def plan_of(case: Case, **changes) -> Plan:
    given_ = {"pairs_per_step": 7, "tokens_per_pack": 10**6} | changes
    return Plan(case.examples, case.images, case.layout, PlanSettings(**given_), cost=COST)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([1, 2, 8, 64]), st.integers(1, 40),
    st.sampled_from(["groups", "pairs", "none"]),
    st.booleans(), st.floats(1, 4), st.integers(0, 3),
)  # fmt: skip
def test_every_pair_once_an_epoch_within_the_budget(seed, world, size, shuffle, drop_last, room, epoch) -> None:
    case = mixture(seed % 50)
    n, budget = len(case.examples), int(largest_pair(case) * room)
    if drop_last and n < size:
        return
    asked = {
        "pairs_per_step": size,
        "tokens_per_pack": budget,
        "seed": seed,
        "shuffle": shuffle,
        "drop_last": drop_last,
    }
    plan = plan_of(case, **asked)
    alone = plan_of(case, **asked | {"tokens_per_pack": 10**6})
    met: list[int] = []
    for s in range(plan.steps_per_epoch):
        step = plan.step(epoch, s, world)
        # ranks, budget and costs only partition a step
        assert step.examples.tolist() == alone.step(epoch, s, 1).examples.tolist()
        inside = [e for rank in step.packs for pack in rank for e in pack.tolist()]
        assert sorted(inside) == sorted(step.examples.tolist())
        assert step.normaliser == len(step.examples) == (size if s < n // size else n % size)
        assert {len(rank) for rank in step.packs} == {step.micro_batches}
        assert len(step.packs) == world and step.tokens.max() <= budget
        met += inside
    assert len(met) == len(set(met)) == (n - n % size if drop_last else n)


@pytest.mark.parametrize("layout", [Layout(image_token_id=63), Layout(image_token_id=63, share=False)])
def test_planned_tokens_are_the_tokens_of_the_packs(layout: Layout) -> None:
    for seed in range(3):
        case = mixture(seed)
        case.layout = layout
        plan = plan_of(case, tokens_per_pack=largest_pair(case) * 2)
        for s in range(plan.steps_per_epoch):
            step = plan.step(0, s, 2)
            built = [
                [build_pack([case.examples[e] for e in pack], case.images, layout) for pack in rank]
                for rank in step.packs
            ]
            assert [[len(p.tokens) for p in rank] for rank in built] == step.tokens.tolist()
            assert sum(p.unshared_tokens for rank in built for p in rank) == step.unshared_tokens
            cost = [
                [
                    len(p.tokens) + COST.vision * int((p.features >= 0).sum()) + COST.attention * attended(p)
                    for p in rank
                ]
                for rank in built
            ]
            # the head's share counts distinct rows, as the targets of one row are few
            rows = [[len(p.rows.unique()) for p in rank] for rank in built]
            want = np.asarray(cost) + COST.head * np.asarray(rows)
            assert step.costs == pytest.approx(want, abs=0.1)


def attended(pack) -> int:
    """(query, key) pairs that attention computes."""
    total = 0
    for q, k in zip(np.diff(pack.q_offsets), np.diff(pack.k_offsets), strict=True):
        total += int(q) * int(k - q) + int(q) * (int(q) + 1) // 2
    return total


def test_groups_and_blocks_follow_the_order_rule() -> None:
    rng = np.random.default_rng(0)
    case = random_mixture(rng, ["captions", "text", "beginnings"])
    shuffled = [case.examples[i] for i in rng.permutation(len(case.examples))]
    group = groups(collapse(shuffled, case.images, case.layout.image_token_id))
    of = {}
    for example, g in zip(shuffled, group.tolist(), strict=True):
        of.setdefault(g, set()).add(example.id.split("-")[0] if example.chosen.images else example.id)
    assert sorted(map(sorted, of.values())) == [["caption"], ["corrected"], ["text-0"], ["text-1"]]
    cut = blocks(group, 10)
    assert sorted(len(b) for b in cut) == [1, 1, 3, 8, 10, 10]
    assert all(len(set(group[b])) == 1 and b.tolist() == sorted(b.tolist()) for b in cut)
    plan = plan_of(replace_examples(case, shuffled), pairs_per_step=10, seed=5)
    assert plan.order(2).tolist() == np.concatenate([cut[b] for b in permutation(6, 5, 2)]).tolist()
    assert plan.order(2).tolist() != plan.order(3).tolist()
    straight = plan_of(replace_examples(case, shuffled), shuffle="none")
    assert straight.order(4).tolist() == list(range(len(shuffled)))


def replace_examples(case: Case, examples: list) -> Case:
    return Case(examples, case.images, case.layout)


def test_the_permutation_is_fixed_for_good() -> None:
    assert permutation(10, 0, 0).tolist() == PERMUTATION
    assert sorted(permutation(1000, 7, 3).tolist()) == list(range(1000))
    first = [int(permutation(64, seed, epoch)[0]) for seed in range(30) for epoch in range(10)]
    assert len(set(first)) > 55  # every place is reached
    assert permutation(5, -1, 0).tolist() != permutation(5, 1, 0).tolist()


PERMUTATION = [0, 3, 5, 7, 9, 6, 2, 8, 1, 4]


def optimum(plan: Plan, world: int, micro_batches: int) -> int | None:
    """Sum over micro-batches of the dearest pack, by trying every partition."""
    examples = plan.order(0)
    memo: dict[tuple, tuple[int, int]] = {(): (0, 0)}

    def size(part: tuple) -> tuple[int, int]:
        if part not in memo:
            _, tokens, cost = plan.forest(examples[list(part)])
            memo[part] = (int(tokens.sum()), int(cost.sum()))
        return memo[part]

    best = None
    for where in product(range(world * micro_batches), repeat=len(examples)):
        packs = [size(tuple(i for i, at in enumerate(where) if at == b)) for b in range(world * micro_batches)]
        if max(t for t, _ in packs) <= plan.settings.tokens_per_pack:
            slowest = sum(sorted((c for _, c in packs), reverse=True)[::world])
            best = slowest if best is None else min(best, slowest)
    return best


def test_close_to_the_best_partition_with_the_least_micro_batches() -> None:
    ratios = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        case = random_mixture(
            rng, [str(k) for k in rng.choice(["isolated", "beginnings", "deep", "single", "text"], 3)]
        )
        case.examples = [case.examples[i] for i in rng.permutation(len(case.examples))[:5]]
        world, budget = int(rng.integers(1, 4)), int(largest_pair(case) * rng.uniform(1, 2.5))
        plan = plan_of(case, pairs_per_step=5, tokens_per_pack=budget)
        step = plan.step(0, 0, world)
        if world * step.micro_batches > 4:
            continue
        if step.micro_batches > 1:
            assert optimum(plan, world, step.micro_batches - 1) is None
        best = optimum(plan, world, step.micro_batches)
        assert best is not None
        ratios.append(step.costs.max(axis=0).sum() * UNIT / best)
    assert len(ratios) > 15 and min(ratios) > 1 - 1e-9
    assert np.mean(ratios) < 1.05 and max(ratios) < 1.25


def test_a_tree_is_split_where_that_shortens_the_slowest_rank() -> None:
    case = random_case(np.random.default_rng(0), "captions")
    plan = plan_of(case, pairs_per_step=28)
    one, four = plan.step(0, 0, 1), plan.step(0, 0, 4)
    assert four.costs.max() < 0.8 * one.costs.max()
    assert four.micro_batches == 1
    assert four.tokens.sum() > one.tokens.sum()  # the price: the prefix again on each rank
    single = replace_examples(case, case.examples[:1])
    lonely = plan_of(single, pairs_per_step=28).step(0, 0, 4)
    assert sorted(len(rank[0]) for rank in lonely.packs) == [0, 0, 0, 1]  # a pair is whole; packs may be empty


def test_a_loss_over_the_batch_gets_the_step_in_one_pack() -> None:
    case = random_case(np.random.default_rng(0), "captions")
    step = plan_of(case, pairs_per_step=28, whole_step=True).step(0, 0, 4)
    assert [[len(pack) for pack in rank] for rank in step.packs] == [[28], [0], [0], [0]]
    with pytest.raises(ValueError, match="whole step in one pack"):
        plan_of(case, pairs_per_step=28, whole_step=True, tokens_per_pack=int(step.tokens.sum()) - 1).step(0, 0, 1)


def test_mistakes_are_named() -> None:
    case = random_case(np.random.default_rng(0), "isolated")
    need = [len(build_pack([e], case.images, case.layout).tokens) for e in case.examples]
    worst = int(np.argmax(need))
    with pytest.raises(ValueError, match=rf"isolated-{worst} \(random:isolated-{worst}\) needs {need[worst]} tokens"):
        plan_of(case, tokens_per_pack=need[worst] - 1)
    with pytest.raises(ValueError, match="drop_last"):
        plan_of(case, pairs_per_step=10, drop_last=True)
    with pytest.raises(ValueError, match="shuffle"):
        PlanSettings(pairs_per_step=1, tokens_per_pack=1, shuffle="group")
    with pytest.raises(ValueError, match="pairs_per_step"):
        PlanSettings(pairs_per_step=0, tokens_per_pack=1)
    with pytest.raises(ValueError, match="nothing to plan"):
        plan_of(replace_examples(case, []))
    with pytest.raises(ValueError, match="mixes"):
        plan_of(replace_examples(case, [*case.examples, replace(case.examples[0], rejected=None)]))


def test_sft_steps_are_normalised_by_weights() -> None:
    case = random_case(np.random.default_rng(1), "sft")
    plan = Plan(
        case.examples,
        case.images,
        case.layout,
        PlanSettings(pairs_per_step=4, tokens_per_pack=200),
        cost=COST,
        gamma=2.0,
    )
    for s in range(plan.steps_per_epoch):
        step = plan.step(0, s, 2)
        weights = 0.0
        for pack in (p for rank in step.packs for p in rank):
            examples = [case.examples[e] for e in pack]
            weights += float(build_pack(examples, case.images, case.layout, gamma=2.0).weights.sum())
        assert step.normaliser == pytest.approx(weights)
