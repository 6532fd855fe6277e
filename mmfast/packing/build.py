"""build_pack: the examples of one micro-batch, as a Pack. Runs on the host, in a data worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmfast.data.records import Example, ImageInfo
from mmfast.data.symbols import Symbols, collapse, ranges
from mmfast.families.layout import Layout
from mmfast.packing.pack import Pack
from mmfast.packing.tree import Forest, prefix_forest

Logps = Mapping[str, np.ndarray] | Callable[[str], np.ndarray]  # response_key -> float32 of each scored token
LoadImages = Callable[[list[str]], dict[str, Tensor]]


def build_pack(
    examples: Sequence[Example] | Symbols,
    images: Mapping[str, ImageInfo],
    layout: Layout,
    *,
    normaliser: float | None = None,
    gamma: float = 1.0,
    reference: Logps | None = None,
    load_images: LoadImages | None = None,
) -> Pack:
    """Lay `examples` out as a prefix forest.

    normaliser   of the whole optimiser step, from the plan; None: these examples are the step
    gamma        weight of tokens that Branch.changed marks
    reference    response_key -> float32 reference log-prob of each scored token; None: Pack.ref_logps is None
    load_images  image ids -> the tensors a family's tower reads, for images in exactly that order
    """
    # Flat symbols, their forest, the stream it spells, and what is scored of it
    if isinstance(examples, Symbols):
        symbols = examples.renumbered()  # images' numbers order siblings, and must not depend on the rest of the data
    else:
        symbols = collapse(examples, images, layout.image_token_id)
    if len(np.unique(symbols.branch_of[:, 1] >= 0)) > 1:
        raise ValueError("a pack holds pairs or SFT examples, not both: run them as two objectives")
    forest = prefix_forest(symbols.flat, symbols.starts, symbols.ends, share=layout.share)
    stream = _Stream(symbols, forest, images, layout)
    rows, targets, scored = _scored_rows(symbols, forest, stream)
    runner_up, instead = _runner_up(symbols, scored, len(rows)) if symbols.runner_up else (None, scored)
    entries = _entries(symbols, (scored, instead), gamma, reference)
    count = len(rows) + (0 if runner_up is None else len(runner_up))
    inverse = _inverse(entries["index"].numpy(), count) if symbols.is_pairs else (None, None)
    runs = _runs(forest, stream)
    return Pack(
        tokens=torch.from_numpy(stream.tokens),
        features=torch.from_numpy(stream.features),
        positions=torch.from_numpy(stream.positions),
        **runs,
        **_tails(runs["q_offsets"].numpy(), rows),
        rows=torch.from_numpy(rows),
        targets=torch.from_numpy(targets),
        normaliser=step_normaliser(symbols.normalisers(gamma)) if normaliser is None else normaliser,
        images=load_images(stream.image_ids) if load_images is not None and stream.image_ids else {},
        image_ids=stream.image_ids,
        unshared_tokens=int(symbols.unshared.sum()),
        runner_up=None if runner_up is None else torch.from_numpy(runner_up),
        index_copies=inverse[0],
        index_offsets=inverse[1],
        **entries,
    )


def step_normaliser(of_examples: np.ndarray) -> float:
    """What a step's summed loss is divided by. A step of rows that weigh 0 adds nothing; it is not 0 / 0."""
    return float(sum(of_examples.tolist())) or 1.0


class _Stream:
    """Tokens, features and positions of a forest in depth-first order, images expanded."""

    def __init__(self, symbols: Symbols, forest: Forest, images: Mapping[str, ImageInfo], layout: Layout) -> None:
        flat = symbols.flat[ranges(forest.start, forest.end)]
        # symbol_offsets[i]: where node i begins in `flat`; token_offsets: in the stream
        self.symbol_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(forest.end - forest.start)])
        at = np.flatnonzero(flat < 0)
        numbers, first, which = np.unique(-1 - flat[at], return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")  # the pack's images, in order of first appearance
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        self.image_ids = [symbols.image_ids[numbers[i]] for i in order]
        infos = [images[i] for i in self.image_ids]
        tokens = np.asarray([i.tokens for i in infos], np.int64)
        rows = tokens - np.asarray([len(i.words) for i in infos], np.int64)
        feature_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)])
        which = rank[which]  # of each image symbol

        length = np.ones(len(flat), np.int64)
        length[at] = tokens[which]
        self.symbol_ends = np.cumsum(length)
        self.token_offsets = np.concatenate([np.zeros(1, np.int64), self.symbol_ends])[self.symbol_offsets]
        total = int(self.token_offsets[-1])
        ids = flat.astype(np.int64)
        ids[at] = -1 if layout.image_token_id is None else layout.image_token_id
        self.tokens = np.repeat(ids, length)
        image_starts = self.symbol_ends[at] - length[at]
        slots = ranges(image_starts, self.symbol_ends[at])
        words, said = _words(infos, which, image_starts)
        self.tokens[words] = said
        self.features = np.full(total, -1, np.int64)
        shown = np.setdiff1d(slots, words, assume_unique=True) if len(words) else slots
        self.features[shown] = ranges(feature_starts[which], feature_starts[which] + rows[which])

        advance = np.ones(len(flat), np.int64)
        advance[at] = np.asarray([layout.advance(i) for i in infos], np.int64)[which]
        run = np.concatenate([np.zeros(1, np.int64), np.cumsum(advance)])
        inside = (run[self.symbol_offsets[1:]] - run[self.symbol_offsets[:-1]]).tolist()
        base: list[int] = []  # position at which each node begins
        for node, above in enumerate(forest.parent.tolist()):
            base.append(0 if above < 0 else base[above] + inside[above])
            assert above < node
        nodes = self.symbol_offsets[1:] - self.symbol_offsets[:-1]
        shift = np.asarray(base, np.int64) - run[self.symbol_offsets[:-1]]
        where = run[:-1] + np.repeat(shift, nodes)  # position of each symbol
        positions = np.repeat(where, length)
        if layout.mrope:
            self.positions = np.repeat(positions[None], 3, axis=0)
            grids = [_grid_positions(layout.merged_grid(i)) for i in infos]
            if len(at):
                self.positions[:, slots] += np.concatenate([grids[w] for w in which], axis=1)
        else:
            positions[slots] += slots - np.repeat(image_starts, length[at])
            self.positions = positions


def _words(infos: Sequence[ImageInfo], which: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Where in the stream words stand among the slots of its images, their ids.)"""
    blocks = [(start, infos[i].words) for start, i in zip(starts.tolist(), which.tolist(), strict=True)]
    found = [(start + place, word) for start, words in blocks for place, word in words]
    places, ids = np.asarray(found, np.int64).reshape(-1, 2).T
    return places, ids


def _grid_positions(grid: tuple[int, int, int]) -> np.ndarray:
    """int64[3, t*h*w]: offsets on the three axes of an image's slots, row by row."""
    return np.indices(grid).reshape(3, -1)


def _inverse(index: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """(copies, offsets): copies[offsets[i]:offsets[i+1]] are the j with index[j] == i, ascending."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(index, minlength=count))])
    return torch.from_numpy(np.argsort(index, kind="stable")), torch.from_numpy(offsets)


def _runs(forest: Forest, stream: _Stream) -> dict:
    """Runs of a node followed by its first child's run, and the keys each run sees: its ancestors', then its own."""
    parent = forest.parent.tolist()
    offsets = stream.token_offsets.tolist()
    # A run begins where a node does not follow its parent directly
    heads = [node for node, above in enumerate(parent) if above < 0 or above != node - 1]
    starts: list[int] = []
    ends: list[int] = []
    k_offsets = [0]
    q_offsets = [offsets[head] for head in heads] + [offsets[-1]]
    # Each run sees the nodes above it, from the root on, then itself
    for r, head in enumerate(heads):
        above, path = parent[head], []
        while above >= 0:
            path.append(above)
            above = parent[above]
        seen = 0
        for node in reversed(path):
            starts.append(offsets[node])
            ends.append(offsets[node + 1])
            seen += ends[-1] - starts[-1]
        starts.append(q_offsets[r])
        ends.append(q_offsets[r + 1])
        k_offsets.append(k_offsets[-1] + seen + ends[-1] - starts[-1])
    k_index = ranges(np.asarray(starts, np.int64), np.asarray(ends, np.int64))
    copies, copy_offsets = _inverse(k_index, offsets[-1])
    return dict(
        q_offsets=torch.tensor(q_offsets, dtype=torch.int32),
        k_index=torch.from_numpy(k_index),
        k_offsets=torch.tensor(k_offsets, dtype=torch.int32),
        k_copies=copies,
        k_copy_offsets=copy_offsets,
        max_q=max(np.diff(q_offsets).tolist(), default=0),
        max_k=max(np.diff(k_offsets).tolist(), default=0),
    )


def _tails(q_offsets: np.ndarray, rows: np.ndarray) -> dict:
    """The rows of each run from its first predicting one on: all that the last layer must make."""
    ends = q_offsets[1:].astype(np.int64)
    bounded = np.append(rows, ends[-1] if len(ends) else 0)
    starts = np.minimum(bounded[np.searchsorted(rows, q_offsets[:-1])], ends)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - starts)])
    return dict(tails=torch.from_numpy(ranges(starts, ends)), tail_offsets=torch.from_numpy(offsets.astype(np.int32)))


def _scored_rows(symbols: Symbols, forest: Forest, stream: _Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct (row, target) of a pack, and which of them scores each scored token of all branches."""
    parent, offsets = forest.parent.tolist(), stream.symbol_offsets.tolist()
    nodes: list[int] = []  # every branch's path, from its root on
    counts = []
    for leaf in forest.leaf.tolist():
        path = []
        while leaf >= 0:
            path.append(leaf)
            leaf = parent[leaf]
        nodes += reversed(path)
        counts.append(sum(offsets[n + 1] - offsets[n] for n in path))
    which = np.asarray(nodes, np.int64)
    paths = ranges(stream.symbol_offsets[which], stream.symbol_offsets[which + 1])  # symbols of all paths
    path_starts = np.cumsum([0, *counts])[:-1]

    begins, ends = symbols.spans.astype(np.int64).T
    scored = ranges(begins, ends)  # positions within their branches
    owner = np.repeat(np.arange(len(counts)), np.diff(symbols.scored_bounds))
    target = symbols.flat[symbols.starts[owner] + scored].astype(np.int64)
    if np.any(target < 0):
        branch = owner[np.flatnonzero(target < 0)[0]]
        example = int(np.flatnonzero((symbols.branch_of == branch).any(axis=1))[0])
        raise ValueError(f"{symbols.told(example)}: a scored span holds an image token")
    row = stream.symbol_ends[paths[path_starts[owner] + scored - 1]] - 1
    targets = int(target.max(initial=0)) + 1
    distinct, index = np.unique(row * targets + target, return_inverse=True)
    return distinct // targets, distinct % targets, index.reshape(-1)


def _runner_up(symbols: Symbols, scored: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of those scorings that rejected sides read by their runner-up tokens, and what then stands in
    `scored`: the place of each among them, behind the `count` scorings themselves."""
    rejected = np.unique(symbols.branch_of[:, 1])
    read = ranges(symbols.scored_bounds[rejected], symbols.scored_bounds[rejected + 1])
    distinct = np.unique(scored[read])
    return distinct, count + np.searchsorted(distinct, scored)  # that of other sides is never read


def _entries(symbols: Symbols, scored: tuple[np.ndarray, np.ndarray], gamma: float, reference: Logps | None) -> dict:
    """One entry a response and weight vector for pairs; one an example for SFT, where a repeated example counts.
    `scored`: what scores each token, of a chosen side and of a rejected one."""
    lookup = reference if reference is None or callable(reference) else reference.__getitem__
    pairs = symbols.is_pairs
    seen: dict[tuple[str, bytes], int] = {}
    keys: list[str] = []
    weights: list[np.ndarray] = []
    index: list[np.ndarray] = []
    logps: list[np.ndarray] = []
    entry_of: list[list[int]] = []
    # Sides with the same response and the same weights are one entry
    for e, sides in enumerate(symbols.branch_of.tolist()):
        entries = []
        for side, b in enumerate(sides if pairs else sides[:1]):
            key, weight = symbols.key(b, rejected=side == 1), symbols.token_weights(b, gamma)
            name = (key, weight.tobytes() if pairs else str(e).encode())
            if not pairs:
                weight = weight * np.float32(symbols.example_weights[e])
            if name not in seen:
                seen[name] = len(keys)
                keys.append(key)
                weights.append(weight)
                index.append(scored[side][symbols.scored_bounds[b] : symbols.scored_bounds[b + 1]])
                if lookup is not None:
                    logps.append(_reference_logps(lookup, key, symbols.told(e), len(weight)))
            entries.append(seen[name])
        entry_of.append(entries)
    # As tensors
    pair_weights = symbols.example_weights.astype(np.float32)
    empty = [np.empty(0, np.int64)]
    return dict(
        index=torch.from_numpy(np.concatenate(index or empty)),
        responses=torch.from_numpy(np.cumsum([0, *map(len, weights)]).astype(np.int32)),
        weights=torch.from_numpy(np.concatenate(weights or empty).astype(np.float32)),
        ref_logps=torch.from_numpy(np.concatenate(logps or empty).astype(np.float32)) if lookup is not None else None,
        pairs=torch.tensor(entry_of if pairs else [], dtype=torch.int64).reshape(-1, 2),
        pair_weights=torch.from_numpy(pair_weights) if pairs and np.any(pair_weights != 1) else None,
        response_ids=keys,
        sample_ids=[symbols.name(e)[0] for e in range(len(symbols))],
    )


def _reference_logps(lookup: Callable[[str], np.ndarray], key: str, example: str, n: int) -> np.ndarray:
    try:
        logps = np.asarray(lookup(key), np.float32)
    except KeyError:
        raise ValueError(
            f"{example}: response {key[:12]} is not in the reference cache; run the reference pass over this data with "
            "the same template, tokenizer and length limits"
        ) from None
    if logps.shape != (n,):
        raise ValueError(f"{example}: the reference cache holds {logps.shape} log-probs, not ({n},)")
    return logps
