"""Examples as flat arrays: the one form in which they are stored, planned and packed.

An image is one symbol, -(1 + its number), and every other symbol is a token id, so that an image is never split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.files import offsets_of


@dataclass(frozen=True, kw_only=True)
class Symbols:
    """E examples over B branches (a prompt with one response) that hold N scored tokens and read I images.

    Several examples may name one branch. A branch's stream stops before its last scored token: that token is predicted,
    but predicts nothing itself, and neither does what stands after it.
    """

    flat: np.ndarray  # int32, whole branches, one after another
    bounds: np.ndarray  # int64[B+1], of the branches in `flat`
    image_at: np.ndarray  # int64, where images stand in `flat`
    image_bounds: np.ndarray  # int64[B+1], of the branches in `image_at`
    spans: np.ndarray  # int32[S,2], scored ranges, counted within their branch
    span_bounds: np.ndarray  # int64[B+1], of the branches in `spans`
    scored_bounds: np.ndarray  # int64[B+1], of the branches in `changed` and `weights`
    changed: np.ndarray  # uint8[N], whether a scored token differs from the other side
    weights: np.ndarray  # float32[N], explicit weights of scored tokens
    has_changed: np.ndarray  # uint8[B], whether `changed` was given
    has_weights: np.ndarray  # uint8[B]
    keys: np.ndarray  # uint8[B,32], the branches' names: response_key's bytes
    branch_of: np.ndarray  # int64[E,2], (chosen, rejected); -1 without a rejected side
    example_weights: np.ndarray  # float64[E]
    name_of: np.ndarray  # int64[E], which of the names is each example's
    names: np.ndarray  # uint8, UTF-8 of id and source, one after another
    name_bounds: np.ndarray  # int64, of ids and sources in `names`
    image_tokens: np.ndarray  # int32[I], slots of each image
    image_ids: Sequence[str]
    runner_up: bool = False  # rejected sides are read by what else was likeliest at each scored token: another response

    def __len__(self) -> int:
        return len(self.branch_of)

    # of one example or branch

    def name(self, example: int) -> tuple[str, str]:
        """(id, source) of an example."""
        row = 2 * int(self.name_of[example])
        a, b, c = self.name_bounds[row : row + 3].tolist()
        text = self.names[a:c].tobytes()
        return text[: b - a].decode("utf-8", "surrogatepass"), text[b - a :].decode("utf-8", "surrogatepass")

    def told(self, example: int) -> str:
        """An example as messages name it."""
        name, source = self.name(example)
        return f"example {name} ({source})"

    def key(self, branch: int, rejected: bool = False) -> str:
        """Of a branch as one side of a pair."""
        key = self.keys[branch].tobytes().hex()
        return runner_up_key(key) if self.runner_up and rejected else key

    def named(self) -> Iterator[tuple[str, ...]]:
        """The response keys of each example, chosen first."""
        text = self.keys.tobytes().hex()
        for sides in self.branch_of.tolist():
            chosen, *rejected = (text[64 * b : 64 * b + 64] for b in sides if b >= 0)
            yield (chosen, *(map(runner_up_key, rejected) if self.runner_up else rejected))

    def token_weights(self, branch: int, gamma: float) -> np.ndarray:
        """float32 weight of each scored token; `gamma` is that of changed ones."""
        scored = slice(*self.scored_bounds[branch : branch + 2].tolist())
        weights = np.ones(scored.stop - scored.start, np.float32)
        if self.has_changed[branch]:
            weights[self.changed[scored].astype(bool)] = gamma
        if self.has_weights[branch]:
            weights *= self.weights[scored]
        return weights

    def branch(self, number: int, image_token_id: int | None) -> Branch:
        ids = np.array(self.flat[self.bounds[number] : self.bounds[number + 1]])
        images = tuple(self.image_ids[-1 - k] for k in ids[ids < 0])
        if images:
            ids[ids < 0] = image_token_id
        scored = slice(*self.scored_bounds[number : number + 2].tolist())
        return Branch(
            ids=ids,
            images=images,
            spans=tuple(map(tuple, self.spans[self.span_bounds[number] : self.span_bounds[number + 1]].tolist())),
            changed=self.changed[scored].astype(bool) if self.has_changed[number] else None,
            weights=np.array(self.weights[scored]) if self.has_weights[number] else None,
        )

    # of all

    @cached_property
    def starts(self) -> np.ndarray:
        return self.bounds[:-1]

    @cached_property
    def ends(self) -> np.ndarray:
        """int64[B]: where each branch's stream ends."""
        last: np.ndarray = self.spans[self.span_bounds[1:] - 1, 1]
        return self.bounds[:-1] + last - 1

    @cached_property
    def prompts(self) -> np.ndarray:
        """int64[B]: where the first scored token of each branch stands in `flat`."""
        first: np.ndarray = self.spans[self.span_bounds[:-1], 0]
        return self.bounds[:-1] + first

    @cached_property
    def unshared(self) -> np.ndarray:
        """int64[B]: tokens of each branch run alone, images expanded."""
        slots = offsets_of(self.image_tokens[-1 - self.flat[self.image_at]].astype(np.int64) - 1)
        images = slots[self.image_bounds]
        return np.diff(self.bounds) + np.diff(images)

    @cached_property
    def predicts(self) -> np.ndarray:
        """bool, of each symbol: whether its hidden state predicts a scored token."""
        owner = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.span_bounds))
        edges = np.zeros(len(self.flat) + 1, np.int8)
        np.add.at(edges, self.bounds[owner] + self.spans[:, 0] - 1, 1)
        np.add.at(edges, self.bounds[owner] + self.spans[:, 1] - 1, -1)
        return np.cumsum(edges[:-1], dtype=np.int8).view(bool)

    @cached_property
    def is_pairs(self) -> bool:
        return len(self) > 0 and bool((self.branch_of[:, 1] >= 0).all())

    def any_changed(self, branches: np.ndarray) -> bool:
        """Whether any scored token of some branches is marked as changed."""
        marked = branches[self.has_changed[branches] > 0]
        return bool(_gather(self.changed, self.scored_bounds, marked)[0].any())

    def normalisers(self, gamma: float) -> np.ndarray:
        """float64[E]: what each example adds to the number that a step's summed loss is divided by: 1 for a pair, for
        SFT the weights of its scored tokens."""
        if self.is_pairs:
            return np.ones(len(self))
        chosen = self.branch_of[:, 0]
        sums: np.ndarray = np.diff(self.scored_bounds)[chosen].astype(np.float64)
        for e in np.flatnonzero(self.has_changed[chosen] | self.has_weights[chosen]).tolist():
            sums[e] = self.token_weights(int(chosen[e]), gamma).sum(dtype=np.float64)
        return sums * self.example_weights

    # other ones

    def pick(self, numbers: np.ndarray) -> Symbols:
        """These examples, in this order, over the same branches; nothing is copied."""
        of_examples = ("branch_of", "example_weights", "name_of")
        return replace(self, **{name: getattr(self, name)[numbers] for name in of_examples})

    def chosen_alone(self) -> Symbols:
        """Without rejected sides: SFT on a file of pairs."""
        return replace(self, branch_of=np.stack([self.branch_of[:, 0], np.full(len(self), -1)], axis=1))

    def cut(self, numbers: np.ndarray) -> Symbols:
        """These examples, in this order, with no more than their own branches, each example's its own; images keep
        their numbers."""
        # Every example gets branches of its own, one after another
        numbers = np.asarray(numbers, np.int64)
        pairs = self.branch_of[numbers]
        branches = pairs[pairs >= 0]
        pairs[pairs >= 0] = np.arange(len(branches))
        # All that is counted by branch, and the names
        rows = np.stack([2 * self.name_of[numbers], 2 * self.name_of[numbers] + 1], axis=1).reshape(-1)
        flat, bounds = _gather(self.flat, self.bounds, branches)
        spans, span_bounds = _gather(self.spans, self.span_bounds, branches)
        changed, scored_bounds = _gather(self.changed, self.scored_bounds, branches)
        names, name_bounds = _gather(self.names, self.name_bounds, rows)
        counts = (self.image_bounds[1:] - self.image_bounds[:-1])[branches]
        return Symbols(
            flat=flat,
            bounds=bounds,
            image_at=np.flatnonzero(flat < 0),
            image_bounds=offsets_of(counts),
            spans=spans,
            span_bounds=span_bounds,
            scored_bounds=scored_bounds,
            changed=changed,
            weights=_gather(self.weights, self.scored_bounds, branches)[0],
            has_changed=self.has_changed[branches],
            has_weights=self.has_weights[branches],
            keys=self.keys[branches] if len(self.keys) else self.keys,
            branch_of=pairs,
            example_weights=self.example_weights[numbers],
            name_of=np.arange(len(numbers)),
            names=names,
            name_bounds=name_bounds,
            image_tokens=self.image_tokens,
            image_ids=self.image_ids,
            runner_up=self.runner_up,
        )

    def renumbered(self) -> Symbols:
        """Its images numbered by first appearance, as `collapse` does, and no others."""
        numbers, first, which = np.unique(-1 - self.flat[self.image_at], return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order))
        flat = np.array(self.flat)
        flat[self.image_at] = -1 - rank[which]
        ids = [self.image_ids[k] for k in numbers[order].tolist()]
        return replace(self, flat=flat, image_ids=ids, image_tokens=self.image_tokens[numbers[order]])

    def arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("image_ids", "runner_up")}


def ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Concatenated arange(start, end) of every range."""
    sizes = ends - starts
    stops = np.cumsum(sizes)
    total = int(stops[-1]) if len(sizes) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (stops - sizes), sizes)


def _gather(values: np.ndarray, bounds: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of some rows, one after another, and their bounds."""
    starts, ends = bounds[rows], bounds[rows + 1]
    return np.asarray(values)[ranges(starts, ends)], offsets_of(ends - starts)


def response_key(branch: Branch) -> str:
    """sha256 of the ids of the whole path (an image is one placeholder), the spans that are scored, and its images.

    Template, EOS and length limit act through the ids; weights, beta and averaging are not in it, so a sweep over
    them reads the same reference cache.
    """
    spans = ",".join(f"{start}-{end}" for start, end in branch.spans)
    digest = hashlib.sha256(f"{spans}|{','.join(branch.images)}|".encode())
    digest.update(branch.ids.astype("<i4", copy=False).tobytes())
    return digest.hexdigest()


def runner_up_key(key: str) -> str:
    """Names the log-probs of a response's runner-up tokens, which depend on who scores them: no cache takes them for
    the response's own."""
    return hashlib.sha256(f"runner-up|{key}".encode()).hexdigest()


def expanded(
    branch: Branch, images: Mapping[str, ImageInfo], image_token_id: int | None
) -> tuple[list[int], list[int]]:
    """Its ids with each image's block written out, and where each id of the branch begins among them."""
    sizes, shown = np.ones(len(branch.ids), np.int64), [images[name] for name in branch.images]
    places = np.flatnonzero(branch.ids == (-1 if image_token_id is None else image_token_id))
    sizes[places] = [info.tokens for info in shown]
    ids, starts = np.repeat(branch.ids, sizes), offsets_of(sizes)[:-1]
    for start, info in zip(starts[places].tolist(), shown, strict=True):
        for place, word in info.words:
            ids[start + place] = word
    return ids.tolist(), starts.tolist()


def branches_of(example: Example) -> tuple[Branch, ...]:
    return (example.chosen,) if example.rejected is None else (example.chosen, example.rejected)


def collapse(
    examples: Sequence[Example], images: Mapping[str, ImageInfo], image_token_id: int | None, *, keys: bool = True
) -> Symbols:
    """Flatten Example objects; mistakes in them are named by example and source. Without `keys` the branches get no
    names, which costs a sha256 each."""
    branches = list(chain.from_iterable(map(branches_of, examples)))
    branch_of = np.full((len(examples), 2), -1, np.int64)
    owner = np.repeat(np.arange(len(examples)), [len(branches_of(e)) for e in examples])
    branch_of[owner, [side for e in examples for side in range(len(branches_of(e)))]] = np.arange(len(branches))
    for e, branch in zip(owner.tolist(), branches, strict=True):
        if not branch.spans or branch.spans[0][0] < 1 or branch.spans[-1][1] > len(branch.ids):
            raise ValueError(
                f"example {examples[e].id} ({examples[e].source}): scored spans {branch.spans} do not fit "
                f"{len(branch.ids)} ids; a response needs at least one token and one token before it"
            )
    flat = _joined([b.ids for b in branches], np.int32)
    bounds = offsets_of([len(b.ids) for b in branches])

    # images: placeholders become numbers, counted by first appearance
    number: dict[str, int] = {}
    shown = [number.setdefault(i, len(number)) for b in branches for i in b.images]
    image_at = np.flatnonzero(flat == image_token_id) if image_token_id is not None else np.empty(0, np.int64)
    image_bounds = offsets_of([len(b.images) for b in branches])
    placeholders = np.diff(np.searchsorted(image_at, bounds))
    wrong = np.flatnonzero(placeholders != np.diff(image_bounds))
    if len(wrong):
        b = wrong[0]
        example = examples[owner[b]]
        raise ValueError(
            f"example {example.id} ({example.source}): {placeholders[b]} image tokens but "
            f"{len(branches[b].images)} images"
        )
    flat[image_at] = -1 - np.asarray(shown, np.int32)
    missing = [i for i in number if i not in images]
    if missing:
        raise ValueError(f"no ImageInfo for image {missing[0]}: pass every image of the examples")

    counts = [sum(end - start for start, end in b.spans) for b in branches]
    texts = [t.encode("utf-8", "surrogatepass") for e in examples for t in (e.id, e.source)]
    names = bytes.fromhex("".join(map(response_key, branches))) if keys else b""
    return Symbols(
        flat=flat,
        bounds=bounds,
        image_at=image_at,
        image_bounds=image_bounds,
        spans=np.asarray([span for b in branches for span in b.spans], np.int32).reshape(-1, 2),
        span_bounds=offsets_of([len(b.spans) for b in branches]),
        scored_bounds=offsets_of(counts),
        changed=_joined([_or(b.changed, 0, n) for b, n in zip(branches, counts, strict=True)], np.uint8),
        weights=_joined([_or(b.weights, 1, n) for b, n in zip(branches, counts, strict=True)], np.float32),
        has_changed=np.asarray([b.changed is not None for b in branches], np.uint8),
        has_weights=np.asarray([b.weights is not None for b in branches], np.uint8),
        keys=_bytes(names).reshape(-1, 32),
        branch_of=branch_of,
        example_weights=np.asarray([e.weight for e in examples], np.float64),
        name_of=np.arange(len(examples)),
        names=_bytes(b"".join(texts)),
        name_bounds=offsets_of([len(t) for t in texts]),
        image_tokens=np.asarray([images[i].tokens for i in number], np.int32),
        image_ids=list(number),
    )


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), np.uint8)


def _or(values: np.ndarray | None, default: int, count: int) -> np.ndarray:
    return np.full(count, default, np.uint8) if values is None else values


def join(parts: Sequence[Symbols]) -> Symbols:
    """The examples of all parts, in order, with one table of images."""
    number: dict[str, int] = {}
    tokens: list[int] = []
    moved = []
    branches = examples = 0
    for part in parts:
        rank = np.asarray([number.setdefault(i, len(number)) for i in part.image_ids], np.int32)
        tokens += part.image_tokens[rank >= len(tokens)].tolist()
        flat = np.array(part.flat)
        flat[part.image_at] = -1 - rank[-1 - flat[part.image_at]]
        pairs = np.where(part.branch_of < 0, -1, part.branch_of + branches)
        moved.append(replace(part, flat=flat, branch_of=pairs, name_of=part.name_of + examples))
        branches += len(part.bounds) - 1
        examples += len(part)
    columns: dict[str, Any] = {}
    for name in moved[0].arrays() if moved else ():
        values = [getattr(part, name) for part in moved]
        if name.endswith("bounds"):
            columns[name] = offsets_of(np.concatenate([np.diff(v) for v in values]))
        elif name == "image_at":
            begins = offsets_of([len(part.flat) for part in moved])
            columns[name] = np.concatenate([v + a for v, a in zip(values, begins, strict=False)])
        else:
            columns[name] = np.concatenate(values)
    columns["image_tokens"] = np.asarray(tokens, np.int32)
    return Symbols(**columns, image_ids=list(number)) if moved else collapse([], {}, None)
