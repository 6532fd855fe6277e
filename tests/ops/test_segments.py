"""changed_segments against difflib, RLHF-V's golden vectors, and the insertion rules."""

import random

import numpy as np
import pytest

from mmfast.ops.segments import INSERTIONS, changed_flags, changed_segments

P = list(range(1000, 1190))
B200, A200 = [*P, 9, 10, 11, 7, 7, 7, 7, 12, 13, 14], [*P, 20, 21, 7, 7, 7, 7, 22]
GOLDEN = [  # rejected, chosen, changed in rejected, changed in chosen
    ([1, 2, 3, 4, 50, 5, 6, 7, 8], [1, 2, 3, 4, 99, 98, 5, 6, 7, 8], [4], [4, 5]),
    (range(1, 9), [1, 2, 3, 4, 99, 98, 5, 6, 7, 8], [], []),
    (range(30), [*range(10), *range(20, 30)], [], []),
    ([1, 2, 3, 4, 50, 5, 6, 51, 7, 8, 9], [1, 2, 3, 4, 60, 5, 6, 61, 7, 8, 9], [4, 5, 6, 7], [4, 5, 6, 7]),
    ([1, 2, 3, 9, 4, 5], [1, 2, 3, 8, 4, 5], [3, 4, 5], [3, 4, 5]),
    ([1, 2, 3, 9, 4, 5, 0, 0, 0], [1, 2, 3, 8, 4, 5, 0, 0, 0], [3], [3]),
    ([1, 2], [3, 4], [0, 1], [0, 1]),
    ([1, 2, 3], [1, 2, 3], [], []),
    (A200, B200, range(190, 197), range(190, 200)),
    (A200[1:], B200[1:], [189, 190, 195], [189, 190, 191, 196, 197, 198]),  # 199 ids: no autojunk
]


@pytest.mark.parametrize("backend", ["cpu", "python"])
@pytest.mark.parametrize("rejected,chosen,in_rejected,in_chosen", GOLDEN)
def test_golden_vectors_of_rlhfv(backend, rejected, chosen, in_rejected, in_chosen):
    found = changed_segments(list(rejected), list(chosen), autojunk=True, backend=backend)
    assert found[0].tolist() == list(in_rejected) and found[1].tolist() == list(in_chosen)


def random_pair(r: random.Random) -> tuple[list[int], list[int]]:
    """Edited copies, noise, few symbols, long runs, empty sides; now and then beyond autojunk's 200."""
    symbols, size = r.choice([1, 2, 3, 8, 50, 3000]), r.choice([0, 1, 2, 5, 20, 60, 199, 200, 201, 260, 450])
    size = r.randint(0, size)
    b = [r.randrange(symbols) if r.random() < 0.7 else r.randrange(min(symbols, 3)) for _ in range(size)]
    if r.random() < 0.2:
        return [r.randrange(symbols) for _ in range(r.randint(0, 40))], b
    a = list(b)
    for _ in range(r.randint(0, 8)):
        at, span = r.randint(0, len(a)), r.randint(0, 6)
        a[at : at + r.choice([0, span])] = [r.randrange(symbols) for _ in range(r.choice([0, span]))]
    return a, b


def agree(count: int, seed: int) -> None:
    r = random.Random(seed)
    for i in range(count):
        a, b = random_pair(r)
        options = {"min_match": r.choice([1, 2, 3, 3, 5]), "autojunk": r.random() < 0.6,
                   "insertions": r.choice(INSERTIONS)}  # fmt: skip
        ours, theirs = changed_flags(a, b, **options), changed_flags(a, b, **options, backend="python")
        assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True)), (i, a, b, options)


def test_agrees_with_difflib_on_a_sample():
    agree(1500, seed=0)


@pytest.mark.slow
def test_agrees_with_difflib_on_100_000_pairs():
    agree(100_000, seed=1)


@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_insertions_and_deletions(backend):
    a, b = [1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 4, 5, 6]
    marked = lambda x, y, how: [i.tolist() for i in changed_segments(x, y, insertions=how, backend=backend)]  # noqa: E731
    assert marked(a, b, "ignore") == [[], []]
    assert marked(a, b, "own") == [[], [3, 4]]
    assert marked(a, b, "both") == [[3], [3, 4]]
    assert marked(b, a, "both") == [[3, 4], [3]]
    assert marked([1, 2, 3], [1, 2, 3, 4], "both") == [[2], [3]]  # at the end: the token before
    assert marked([], [7, 8], "both") == [[], [0, 1]]
    assert marked([], [], "both") == [[], []]


def test_inputs():
    ids = np.arange(8)
    assert changed_segments(ids[::2], ids[::2])[0].size == 0
    for bad, message in [([[1]], "flat list"), ([1.5], "flat list"), ([2**31], "outside int32")]:
        with pytest.raises(ValueError, match=f"chosen.*{message}"):
            changed_segments([1], bad)
    with pytest.raises(ValueError, match="min_match"):
        changed_segments([1], [1], min_match=0)
    with pytest.raises(ValueError, match="insertions must be one of"):
        changed_segments([1], [1], insertions="mark")
    with pytest.raises(ValueError, match="backend"):
        changed_segments([1], [1], backend="cuda")
