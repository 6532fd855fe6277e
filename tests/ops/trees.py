"""Small prefix trees for the tests: the offsets and indices of a Pack, built the plain way."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class Tree:
    q_offsets: Tensor
    k_index: Tensor
    k_offsets: Tensor
    paths: list[list[int]]  # stream rows of every root-to-leaf path
    max_q: int
    max_k: int
    size: int

    def to(self, device: torch.device) -> Tree:
        tensors = (t.to(device) for t in (self.q_offsets, self.k_index, self.k_offsets))
        return Tree(*tensors, self.paths, self.max_q, self.max_k, self.size)

    def inverse(self) -> tuple[Tensor, Tensor]:
        copies = [[j for j, t in enumerate(self.k_index.tolist()) if t == i] for i in range(self.size)]
        offsets = [0]
        for found in copies:
            offsets.append(offsets[-1] + len(found))
        return torch.tensor([j for found in copies for j in found], dtype=torch.int64), torch.tensor(offsets)


def tree(*roots) -> Tree:
    """A node is (length, child, child, ...); a run is a node followed by its first child's run."""
    q, k_index, k, paths = [0], [], [0], []
    position = 0

    def run(node, ancestors: list[int]) -> None:
        nonlocal position
        begin, waiting = position, []
        own: list[int] = []
        while True:
            length, *children = node
            own += range(position, position + length)
            position += length
            if not children:
                break
            waiting.append((children[1:], ancestors + own))
            node = children[0]
        q.append(begin + len(own))
        k_index.extend(ancestors + own)
        k.append(len(k_index))
        paths.append(ancestors + own)
        for others, path in reversed(waiting):
            for child in others:
                run(child, list(path))

    for root in roots:
        run(root, [])
    spans = [b - a for a, b in pairwise(q)]
    keys = [b - a for a, b in pairwise(k)]
    return Tree(
        torch.tensor(q, dtype=torch.int32), torch.tensor(k_index, dtype=torch.int64),
        torch.tensor(k, dtype=torch.int32), paths, max(spans, default=0), max(keys, default=0), position,
    )  # fmt: skip


PAIR = tree((7, (3,), (4,)))
DEEP = tree((5, (1, (2, (3,), (1,)), (4,)), (6,)), (1,), (9, (1,), (1,), (2,)))
