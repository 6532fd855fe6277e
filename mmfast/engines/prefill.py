"""Prefill: the prompts and labels of some requests in one pack; keys and values are kept a tree node.

Image and prompt run once for all samples, an image once for all its prompts. What the pack holds is a function of the
requests alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmfast.engines.base import Picture
from mmfast.engines.decode_attention import LEAST, Stack
from mmfast.engines.prompts import Prompt, Prompts
from mmfast.models.scorer import Scorer
from mmfast.packing import Pack, build_pack

PADDING = 4  # stacks to a doubling of the length: at most 2^(1/4) of a stack is padding
SHORT = 16  # tokens: nodes up to this length stand in one stack


@dataclass(eq=False)
class Node:
    """A piece of the prefix tree that the same prompts pass through."""

    stack: Stack
    place: int
    length: int  # tokens
    start: int  # and how many of its path stand before


@dataclass(eq=False)
class Prefilled:
    prompt: Prompt
    labels: dict[str, float]
    nodes: list[Node]  # from the root on
    hidden: Tensor | None  # [D], of its last token
    ordinal: int = 0  # of the answer's first token: the prompt's length
    position: int = 0  # and its position


@dataclass(eq=False)
class Plan:
    """A pack, not run yet."""

    prompts: list[Prompt]
    pack: Pack
    generates: list[bool]  # of each prompt: whether the pack has an entry for it, before those of its labels

    @property
    def pictures(self) -> list[Picture]:
        found = {picture.id: picture for prompt in self.prompts for picture in prompt.pictures}
        return [found[name] for name in self.pack.image_ids]

    @property
    def tokens(self) -> int:
        """The most that its nodes take of the budget."""
        return 2 * SHORT * len(self.prompts) + math.ceil(len(self.pack.tokens) * 2 ** (1 / PADDING))


def plan(prompts: Sequence[Prompt], made: Prompts, scorer: Scorer, end: int) -> Plan:
    """`end`: any token; the one that a prompt's last state is asked about."""
    examples, generates = [], []
    for prompt in prompts:
        generates.append(bool(prompt.n))
        examples += [prompt.example([end])] if prompt.n else []
        examples += [prompt.example(ids) for ids in prompt.labels.values()]
    layout = replace(scorer.adapter.layout(), share=scorer.shared)
    return Plan(list(prompts), build_pack(examples, made.infos, layout), generates)


def run(plan: Plan, images: dict[str, Tensor], scorer: Scorer) -> list[Prefilled]:
    """`images`: of the pack, as Prompts.load_images gives them."""
    pack = replace(plan.pack, images=scorer.adapter.prepare(images)).to(scorer.device)
    # The forward, and the labels' log-probs
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    labelled = any(prompt.labels for prompt in plan.prompts)
    logps: Any = torch.zeros(len(pack.rows))
    if scorer.shared:
        rows = read_of(plan.pack.rows, len(pack.tokens)).to(scorer.device)
        hidden = scorer.hidden_states(pack, kept, rows)
        logps = scorer.logprobs(hidden, pack) if labelled else logps
    elif labelled:
        logps = scorer(pack)
    bounds, scored = plan.pack.responses.tolist(), logps.float().cpu()[plan.pack.index]
    # Entries in the order in which examples were planned
    out, entry, last = [], 0, []
    for prompt, generates in zip(plan.prompts, plan.generates, strict=True):
        if generates and scorer.shared:
            last.append(int(plan.pack.rows[plan.pack.index[bounds[entry]]]))
        entry += generates
        labels = {}
        for label in prompt.labels:
            labels[label] = float(scored[bounds[entry] : bounds[entry + 1]].double().sum())
            entry += 1
        out.append(Prefilled(prompt, labels, [], None))
    # Keys and values a node
    if last:
        paths = [path_to(plan.pack, row) for row in last]
        nodes = keep(paths, kept)
        positions = plan.pack.positions
        generating = [one for one, generates in zip(out, plan.generates, strict=True) if generates]
        for number, one in enumerate(generating):
            one.nodes, one.ordinal = nodes[number], len(paths[number])
            one.hidden = hidden[last[number]].clone()
            one.position = int(positions[..., paths[number]].max()) + 1
    return out


def read_of(rows: Tensor, size: int) -> Tensor:
    """The rows of a pack that are read, each once; so many at least that a row's bits depend on no other (LEAST)."""
    found = rows.to(torch.int64).unique()
    if len(found) >= min(LEAST, size):
        return found
    rest = torch.ones(size, dtype=torch.bool, device=rows.device)
    rest[found] = False
    return torch.cat([found, rest.nonzero().flatten()[: LEAST - len(found)]])


def path_to(pack: Pack, row: int) -> Tensor:
    """int64: the stream indices that a token sees, itself included."""
    run = int(torch.searchsorted(pack.q_offsets, row, right=True)) - 1
    end = int(pack.k_offsets[run + 1]) - (int(pack.q_offsets[run + 1]) - 1 - row)
    return pack.k_index[int(pack.k_offsets[run]) : end]


def keep(paths: Sequence[Tensor], kept: dict[int, tuple[Tensor, Tensor]]) -> list[list[Node]]:
    """The nodes of each path: tokens that the same paths go through are one node. Nodes of similar lengths are stacked,
    padded to the longest of them."""
    # Pieces of the paths: a path's tokens are shared by ever fewer others
    count = torch.zeros(int(max(path.max() for path in paths)) + 1, dtype=torch.int64)
    for path in paths:
        count[path] += 1
    pieces: dict[int, tuple[Tensor, int, int]] = {}  # by the first token: (tokens, where on the path, paths)
    names: list[list[int]] = []
    for path in paths:
        shared = count[path]
        begins = [0, *(torch.nonzero(shared[1:] != shared[:-1]).flatten() + 1).tolist(), len(path)]
        names.append([])
        for a, b in pairwise(begins):
            name = int(path[a])
            pieces.setdefault(name, (path[a:b], a, int(shared[a])))
            names[-1].append(name)
    # Stacks of similar lengths and numbers of rows
    alike = defaultdict(list)
    for name, (tokens, _, paths_through) in pieces.items():
        length = math.ceil(PADDING * math.log2(max(len(tokens), SHORT)))
        alike[length, paths_through.bit_length()].append(name)
    made: dict[int, Node] = {}
    for group in alike.values():
        longest = max(len(pieces[name][0]) for name in group)
        index = torch.stack([torch.nn.functional.pad(pieces[n][0], (0, longest - len(pieces[n][0]))) for n in group])
        device = kept[0][0].device
        index = index.to(device)
        chosen = [[t[0][:, index].transpose(0, 1).contiguous() for t in kept[layer]] for layer in sorted(kept)]
        stack = Stack(
            keys=[keys for keys, _ in chosen],
            values=[values for _, values in chosen],
            lengths=torch.tensor([len(pieces[name][0]) for name in group], device=device),
            starts=torch.tensor([pieces[name][1] for name in group], device=device),
            rows=torch.zeros(len(group), 1, dtype=torch.int64, device=device),
        )
        made |= {n: Node(stack, place, len(pieces[n][0]), pieces[n][1]) for place, n in enumerate(group)}
    return [[made[name] for name in path] for path in names]
