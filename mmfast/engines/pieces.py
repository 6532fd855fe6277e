"""The tables of a decode step with fixed shapes: rows, pieces of keys and parts, each padded to a bucket.

All that changes between steps is one array of int64, the places of keys included, so that a step can be captured in a
CUDA graph and replayed: nodes and pages stay where they are, and nothing shared is copied. The attention is
kernels/decode.py, where the columns of a piece are explained. What is spare is empty: a row without parts, a piece
without keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from mmfast.engines.decode_attention import LEAST, PAGE, Stack
from mmfast.engines.prefill import Node, Prefilled


class Row(Protocol):
    """What an answer and a beam have in common."""

    of: Prefilled
    tokens: list[int]
    pages: list[int]


@dataclass(frozen=True)
class Shape:
    """A bucket: steps of one shape are one graph."""

    rows: int
    pieces: int
    parts: int
    stacks: int
    layers: int

    def split(self, words: Any) -> Words:
        """Views of an array or a tensor of `size` numbers."""
        from mmfast.kernels.decode import WIDTH

        ends = np.cumsum([*(self.rows,) * 3, self.rows + 1, self.layers * 2 * self.stacks, self.pieces * WIDTH])
        some = [words[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        bases, pieces = some[4].reshape(self.layers, 2, self.stacks), some[5].reshape(self.pieces, WIDTH)
        return Words(some[0], some[1], some[2], some[3], bases, pieces)

    @property
    def size(self) -> int:
        from mmfast.kernels.decode import WIDTH

        return 4 * self.rows + 1 + self.layers * 2 * self.stacks + self.pieces * WIDTH


class Words(NamedTuple):
    """Arrays on the host, tensors on the device."""

    positions: Any  # [R]
    ordinals: Any  # [R], of this step's token in its path
    place: Any  # [R], where its key goes: elements from the pool's start
    begin: Any  # [R+1], the parts of each row
    bases: Any  # [layers, 2, stacks]: where keys and values begin, in elements from an anchor; the pool's come first
    pieces: Any  # [I, WIDTH]


def bucket(number: int, least: int) -> int:
    return max(least, 1 << (number - 1).bit_length())


class Tables:
    """Of some rows, as long as neither they nor their pages change."""

    def __init__(self, rows: Sequence[Row], pool: Stack, anchor: Tensor) -> None:
        from mmfast.kernels.decode import HEAD, SPAN, TILE, WIDTH

        assert TILE >= PAGE
        # Which rows look at which node
        under: dict[Node, list[int]] = {}
        for r, row in enumerate(rows):
            for node in row.of.nodes:
                under.setdefault(node, []).append(r)
        stacks = list(dict.fromkeys([pool, *(node.stack for node in under)]))
        number = {stack: n for n, stack in enumerate(stacks)}
        # Parts are numbered row by row: those of its nodes, then one a page
        shared = np.array([sum(-(-node.length // TILE) for node in row.of.nodes) for row in rows])
        own = np.array([len(row.pages) for row in rows])
        begin = np.concatenate([[0], np.cumsum(shared + own)])
        following = begin[:-1].tolist()
        lines: list[list[int]] = []
        for node, looking in under.items():
            _, heads, length, size = node.stack.keys[0].shape
            for first in range(0, node.length, TILE):
                at = (node.place * heads * length + first) * size
                count = min(TILE, node.length - first)
                head = [number[node.stack], at, length * size, count, node.start + first]
                for k in range(0, len(looking), SPAN):
                    some = looking[k : k + SPAN]
                    spare = [-1] * (SPAN - len(some))
                    lines.append([*head, *some, *spare, *(following[r] for r in some), *spare])
                for r in looking:
                    following[r] += 1
        # Pages, of the pool, each row by itself
        _, heads, _, size = pool.keys[0].shape
        total = int(own.sum())
        which = np.repeat(np.arange(len(rows)), own)
        nth = np.arange(total) - np.repeat(np.cumsum(own) - own, own)
        pages = np.fromiter(chain.from_iterable(row.pages for row in rows), np.int64, total)
        mine = np.full((total, WIDTH), -1, np.int64)
        mine[:, :HEAD] = 0
        mine[:, 1], mine[:, 2], mine[:, 3] = pages * heads * PAGE * size, PAGE * size, PAGE
        mine[:, 4] = np.array([row.of.ordinal for row in rows])[which] + nth * PAGE
        mine[:, HEAD], mine[:, HEAD + SPAN] = which, (begin[:-1] + shared)[which] + nth
        # All in one array
        layers = len(pool.keys)
        self.shape = Shape(
            bucket(len(rows), LEAST), bucket(len(lines) + total, 64), bucket(int(begin[-1]), 512),
            bucket(len(stacks), 16), layers,
        )  # fmt: skip
        self.words = np.zeros(self.shape.size, np.int64)
        self.views = v = self.shape.split(self.words)
        v.begin[: len(begin)] = begin
        v.begin[len(begin) :] = begin[-1]
        for n, stack in enumerate(stacks):
            v.bases[:, 0, n] = [keys.data_ptr() for keys in stack.keys]
            v.bases[:, 1, n] = [values.data_ptr() for values in stack.values]
        v.bases[..., : len(stacks)] -= anchor.data_ptr()
        v.bases[...] //= anchor.itemsize
        if lines:
            v.pieces[: len(lines)] = lines
        v.pieces[len(lines) : len(lines) + total] = mine
        # What every step moves on
        self.stride = PAGE * size
        self.last = len(lines) + np.cumsum(own) - 1
        self.page = v.pieces[self.last, 1]
        self.starts = np.array([(row.of.position, row.of.ordinal) for row in rows]).T

    def advance(self, rows: Sequence[Row]) -> np.ndarray:
        """The words of a step, whose tokens are the rows' last."""
        count, v = len(rows), self.views
        lengths = np.array([len(row.tokens) - 1 for row in rows])  # own tokens before this one
        v.positions[:count], v.ordinals[:count] = self.starts + lengths
        offset = lengths % PAGE
        v.place[:count] = self.page + offset * (self.stride // PAGE)
        v.pieces[self.last, 3] = offset + 1
        return self.words


@dataclass(eq=False)
class Pieces:
    """What a step's attention must know; it travels where a pack's Tree does."""

    words: Words  # on the device
    shape: Shape
    anchor: Tensor
    stride: int
    addends: tuple[Tensor, ...] = ()  # deepstack acts on prompts alone

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        from mmfast.kernels import decode

        assert key.shape == value.shape and query.dtype == key.dtype == self.anchor.dtype, (key, value.shape)
        words = self.words
        return decode.attend(
            query.contiguous(), key.contiguous(), value.contiguous(), self.anchor, words.bases[layer, 0],
            words.bases[layer, 1], words.pieces, words.begin, words.ordinals, words.place, self.stride,
            self.shape.parts, scale=scale, window=window,
        )  # fmt: skip
