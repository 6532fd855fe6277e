"""Examples as flat int32 arrays, the form in which trees, plans and packs read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.families.layout import Layout


@dataclass(frozen=True)
class Symbols:
    """The branches of some examples, chosen before rejected, as one flat array.

    Image k of `image_ids` is the symbol -(1 + k). A branch's stream stops before its last scored token: that token is
    predicted, but predicts nothing itself, and neither does what stands after it.
    """

    flat: np.ndarray  # int32, whole branches, one after another
    starts: np.ndarray  # int64[branches]
    ends: np.ndarray  # int64[branches], end of the stream (the branch itself ends at the next start)
    image_ids: tuple[str, ...]
    image_tokens: np.ndarray  # int64[images]
    branch_of: np.ndarray  # int32[examples, 2], (chosen, rejected); -1 without a rejected side
    whole: np.ndarray  # int64[branches], tokens of the whole branch run alone, images expanded
    prompts: np.ndarray  # int64[branches], where the first scored token stands in `flat`
    predicts: np.ndarray  # bool, of each symbol: whether its hidden state predicts a scored token


def ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Concatenated arange(start, end) of every range."""
    sizes = ends - starts
    stops = np.cumsum(sizes)
    total = int(stops[-1]) if len(sizes) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (stops - sizes), sizes)


def branches_of(example: Example) -> tuple[Branch, ...]:
    return (example.chosen,) if example.rejected is None else (example.chosen, example.rejected)


def collapse(examples: Sequence[Example], images: Mapping[str, ImageInfo], layout: Layout) -> Symbols:
    """Flatten examples; mistakes in them are named by example and source."""
    branches: list[Branch] = []
    branch_of = np.full((len(examples), 2), -1, np.int32)
    stops: list[int] = []
    prompts: list[int] = []
    spans: list[tuple[int, int, int]] = []  # (branch, start, end)
    for e, example in enumerate(examples):
        for side, branch in enumerate(branches_of(example)):
            branch_of[e, side] = len(branches)
            if not branch.spans or branch.spans[0][0] < 1 or branch.spans[-1][1] > len(branch.ids):
                raise ValueError(
                    f"example {example.id} ({example.source}): scored spans {branch.spans} do not fit "
                    f"{len(branch.ids)} ids; a response needs at least one token and one token before it"
                )
            stops.append(branch.spans[-1][1] - 1)
            prompts.append(branch.spans[0][0])
            spans += [(len(branches), start - 1, end - 1) for start, end in branch.spans]
            branches.append(branch)
    count = np.asarray([len(b.ids) for b in branches], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    flat = np.concatenate([b.ids for b in branches], dtype=np.int32) if branches else np.empty(0, np.int32)

    number: dict[str, int] = {}
    wanted = [number.setdefault(i, len(number)) for b in branches for i in b.images]
    at = np.flatnonzero(flat == layout.image_token_id) if layout.image_token_id is not None else np.empty(0, np.int64)
    given = np.asarray([len(b.images) for b in branches], np.int64)
    found = np.bincount(np.searchsorted(starts, at, side="right") - 1, minlength=len(branches))
    if np.any(given != found):
        bad = int(np.flatnonzero(given != found)[0])
        example = examples[int(np.flatnonzero((branch_of == bad).any(axis=1))[0])]
        raise ValueError(
            f"example {example.id} ({example.source}): {int(found[bad])} image tokens but {int(given[bad])} images"
        )
    flat[at] = -1 - np.asarray(wanted, np.int32)
    missing = [i for i in number if i not in images]
    if missing:
        raise ValueError(f"no ImageInfo for image {missing[0]}: pass every image of the examples")
    image_tokens = np.asarray([images[i].tokens for i in number], np.int64)
    whole = count - given
    np.add.at(whole, np.repeat(np.arange(len(branches)), given), image_tokens[np.asarray(wanted, np.int64)])
    begins = starts[:-1]
    owner, first, last = np.asarray(spans, np.int64).reshape(-1, 3).T
    edges = np.zeros(len(flat) + 1, np.int8)
    np.add.at(edges, begins[owner] + first, 1)
    np.add.at(edges, begins[owner] + last, -1)
    predicts = np.cumsum(edges[:-1], dtype=np.int8).view(bool)
    return Symbols(
        flat=flat,
        starts=begins,
        ends=begins + np.asarray(stops, np.int64),
        image_ids=tuple(number),
        image_tokens=image_tokens,
        branch_of=branch_of,
        whole=whole,
        prompts=begins + np.asarray(prompts, np.int64),
        predicts=predicts,
    )
