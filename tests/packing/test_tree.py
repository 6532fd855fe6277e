"""The prefix forest: the native builder equals the plain one, and its paths spell every branch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.packing.tree import Forest, prefix_forest, prefix_forest_plain

branches = st.lists(st.lists(st.integers(-2, 3), min_size=1, max_size=7), min_size=0, max_size=14)


def flat(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ends = np.cumsum([len(s) for s in sequences], dtype=np.int64)
    starts = ends - np.asarray([len(s) for s in sequences], np.int64)
    return np.asarray([x for s in sequences for x in s], np.int32), starts, ends


def spelled(symbols: np.ndarray, forest: Forest) -> list:
    words = [tuple(symbols[a:b].tolist()) for a, b in zip(forest.start, forest.end, strict=True)]
    return [forest.parent.tolist(), words, forest.leaf.tolist()]


@settings(max_examples=200, deadline=None)
@given(branches, st.booleans())
def test_native_equals_plain(sequences: list[list[int]], share: bool) -> None:
    symbols, starts, ends = flat(sequences)
    plain = prefix_forest_plain(symbols, starts, ends, share=share)
    assert spelled(symbols, prefix_forest(symbols, starts, ends, share=share)) == spelled(symbols, plain)


@settings(max_examples=200, deadline=None)
@given(branches)
def test_paths_spell_the_branches_and_nothing_stands_twice(sequences: list[list[int]]) -> None:
    symbols, starts, ends = flat(sequences)
    forest = prefix_forest(symbols, starts, ends)
    parent, words, leaf = spelled(symbols, forest)
    for sequence, node in zip(sequences, leaf, strict=True):
        path: list[int] = []
        while node >= 0:
            path = [*words[node], *path]
            node = parent[node]
        assert path == sequence
    beginnings = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert sum(map(len, words)) == len(beginnings)
    assert all(above < node for node, above in enumerate(parent))
    # depth-first: a node follows its parent or another node of its parent's subtree
    for node in range(1, len(parent)):
        above = node - 1
        while above != parent[node]:
            assert above >= 0
            above = parent[above]


def test_unshared_keeps_branches_apart() -> None:
    symbols, starts, ends = flat([[1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 2]])
    forest = prefix_forest(symbols, starts, ends, share=False)
    assert forest.parent.tolist() == [-1, -1, -1]
    assert forest.leaf[0] == forest.leaf[2]
