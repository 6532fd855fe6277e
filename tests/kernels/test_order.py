"""The emulated kernels give the same bits with blocks, warps and lanes in ascending, descending and random order.

The emulation runs threads one after another, so a kernel that lacks a barrier can be right by the luck of the order.
Races that no order shows are found by looking at every access to memory: here planted ones, in all other tests of the
random order whatever is there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmfast.ops.head.folds import STATS, Tile, Written
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.preference_kernels import PreferenceTensors, preference_native
from mmfast.ops.rows import DTYPE_CODES
from tests.kernels.emulation import ORDERS, emulated, run_in
from tests.kernels.test_preference import arguments, spec_of

SPEC = HeadSpec(5.0, 0.7, entropy=True, squares=True, total=True)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    run_in(ORDERS[0])


def both_ways(run) -> list[list[Tensor]]:  # type: ignore[no-untyped-def]
    """What is to be compared: the ascending order's results, twice, and those of the other two."""
    results = []
    for order in ORDERS:
        run_in(order)
        results.append(run())
    ascending, *others = results
    return [ascending * len(others), [t for other in others for t in other]]


def passed_on(first: bool, barrier: bool) -> Tensor:
    out = torch.full((96,), -1, dtype=torch.int32)
    emulated().pass_on(out.data_ptr(), 96, first, barrier)
    return out


@pytest.mark.parametrize("first", [False, True])
def test_a_missing_barrier_shows_in_one_of_the_orders(first: bool) -> None:
    """The emulation itself: a kernel whose first or last warp writes what all read."""
    for barrier in (True, False):
        right = []
        for order in ORDERS[:2]:
            run_in(order)
            right.append(bool((passed_on(first, barrier) == 7).all()))
        assert right == [True, True] if barrier else sorted(right) == [False, True]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first", [False, True])
def test_a_planted_race_is_found_in_every_order(first: bool, order: str) -> None:
    run_in(order)
    emulated().watch(True)
    assert bool((passed_on(first, barrier=True) == 7).all())
    with pytest.raises(RuntimeError, match=r"race on shared memory: thread \d+ of block \(0, 0\) \w+ what thread \d+"):
        passed_on(first, barrier=False)
    assert bool((passed_on(first, barrier=True) == 7).all()), "a fault is told once"


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_that_write_one_word_are_a_race(order: str) -> None:
    run_in(order)
    emulated().watch(True)
    word = torch.zeros(1, dtype=torch.int32)
    emulated().count_blocks(word.data_ptr(), 1)
    emulated().count_blocks(word.data_ptr(), 1)  # another launch is no race
    with pytest.raises(RuntimeError, match=r"race on global memory: .* another block"):
        emulated().count_blocks(word.data_ptr(), 2)


@pytest.mark.parametrize("width", [64, 2500])  # one warp, and many
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folds(width: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(5, width, generator=g)
    z[3, -2] = 50.0  # read twice
    targets = torch.randint(0, width, (5,), generator=g)
    lse, a, b, d = torch.randn(4, 5, generator=g)

    def run() -> list[Tensor]:
        folds = NativeFolds("cuda", emulated())
        stats, base = torch.zeros(STATS, 5), torch.zeros(5)
        probs, probs_z, grad, kept = (torch.empty(5, width, dtype=dtype) for _ in range(4))
        sums = torch.ones(5, width)
        for first in (0, width):
            tile = Tile(z + first / 100, None, targets, first)
            folds.forward(tile, stats, SPEC, Written(probs, probs_z, sums if first else None, base))
        folds.gradient(Tile(z.to(dtype), None, targets, 0), lse + 9, a, b, d, SPEC, grad)
        kept.copy_(probs)
        folds.finish(kept, torch.linspace(0.5, 1, 5)[None], width, targets, d)
        return [stats, probs, probs_z, grad, kept, sums, base]

    assert all(torch.equal(x, y) for x, y in zip(*both_ways(run), strict=True))


@pytest.mark.parametrize("lengths", [(3, 1, 40, 2, 5), (100, 30, 30, 4, 1)])
def test_preference(lengths: tuple[int, ...]) -> None:
    given = arguments("sigmoid", torch.float32, lengths)
    given[1][::2] = 5
    spec = spec_of("sigmoid", given, sft_weight=0.3, ld_alpha=0.5)
    run = lambda: list(preference_native("cuda", PreferenceTensors(*given), spec, True, emulated()))  # noqa: E731
    assert all(torch.equal(x, y) for x, y in zip(*both_ways(run), strict=True))


@pytest.mark.parametrize("width", [7, 600])
def test_splice_and_segment_sum(width: int) -> None:
    g = torch.Generator().manual_seed(0)
    table, images = torch.randn(20, width, generator=g), torch.randn(6, width, generator=g)
    tokens = torch.randint(0, 20, (30,), generator=g)
    features = torch.full((30,), -1)
    features[4:10] = torch.arange(6)
    order, offsets = torch.randint(0, 20, (90,), generator=g), torch.arange(0, 91, 10)

    def run() -> list[Tensor]:
        out, sums = torch.empty(30, width), torch.empty(9, width)
        addresses = [t.data_ptr() for t in (tokens, features, table, images, out)]
        emulated().cuda_splice(*addresses, 30, 4 * width, 0)
        addresses = [t.data_ptr() for t in (table, order, offsets, sums)]
        emulated().cuda_segment_sum(*addresses, 9, width, DTYPE_CODES[table.dtype], 0)
        return [out, sums]

    assert all(torch.equal(x, y) for x, y in zip(*both_ways(run), strict=True))
