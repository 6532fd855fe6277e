"""The decode loop: rows of answers in the making, their pages, and the tables of a step.

A row leaves as soon as its answer has ended, and a waiting one takes its place where the budget allows: tokens of keys
and values that are held, nodes and reserved pages together, never exceed it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmfast.engines.base import Decode, Finish
from mmfast.engines.beams import Beam, Beams, inherit
from mmfast.engines.decode_attention import NAME, PAGE, Stack, Step
from mmfast.engines.prefill import LEAST, Node, Prefilled
from mmfast.engines.sampling import choose, draw, stream_of
from mmfast.engines.transfers import fetch, send
from mmfast.models.attention import Tree, attention
from mmfast.models.scorer import Scorer, idle
from mmfast.packing import build_pack

ROWS = 256  # at once, for the sake of their logits


@dataclass(eq=False)
class Answer:
    """One answer in the making. What `choose` reads is sampling.Drawn's."""

    of: Prefilled
    sample: int
    most: int  # tokens
    stops: Callable[[list[int]], Finish | None]
    allowed: Callable[[], Tensor | None] | None = None
    accept: Callable[[int], bool] | None = None  # of a constraint: takes a token, and says whether the answer is whole
    tokens: list[int] = field(default_factory=list)
    logp: float = 0.0
    finish: Finish = "length"
    pages: list[int] = field(default_factory=list)
    shown: list[int] | None = None  # the prompt's ids where a repetition penalty asks for them

    def __post_init__(self) -> None:
        prompt = self.of.prompt
        self.decode: Decode = prompt.decode
        self.stream = stream_of(prompt.key, self.sample, self.decode.seed)

    @property
    def step(self) -> int:
        return len(self.tokens)

    @property
    def seen(self) -> list[int] | None:
        return None if self.shown is None else [*self.shown, *self.tokens]

    @property
    def reserved(self) -> int:
        """Pages that it may need. The last token's keys are never made."""
        return -(-(self.most - 1) // PAGE) * self.decode.beams

    def take(self, token: int, logp: float) -> bool:
        """Adds a token; True where the answer has ended."""
        self.tokens.append(token)
        self.logp += logp
        finish = self.stops(self.tokens)
        if finish is None and self.accept is not None and self.accept(token):
            finish = "stop"
        if finish is not None:
            self.finish = finish
        return finish is not None or len(self.tokens) >= self.most


class Decoding:
    def __init__(self, scorer: Scorer, budget: int, ends: int, *, sharded: bool = False) -> None:
        """`budget`: tokens of keys and values; `ends`: how many end tokens there are; `sharded`: every step runs the
        decoder once, with rows or without, because other ranks do."""
        self.scorer, self.budget, self.ends, self.sharded = scorer, budget, ends, sharded
        self.device = scorer.device
        self.early = self.device.type == "cuda"  # tokens are read while the step that follows them runs already
        self.waiting: deque[Answer] = deque()
        self.rows: list[Answer | Beam] = []
        self.searches: dict[Answer, Beams] = {}
        self.hidden: Tensor | None = None  # [R,D], of each row's last token
        self.pages: Stack | None = None
        self.free: list[int] = []  # pages, a heap; page 0 belongs to the spare rows
        self.reserved = 0
        self.tables: Step | None = None
        self.counts = {"steps": 0, "rows": 0, "spare": 0, "ended": 0}  # ended: rows run beyond their end

    # the budget, in tokens

    @property
    def stacks(self) -> list[Stack]:
        answers = [*self.rows, *self.waiting]
        return list(dict.fromkeys(node.stack for answer in answers for node in answer.of.nodes))

    @property
    def held(self) -> int:
        return sum(stack.tokens for stack in self.stacks) + (self.reserved + 1) * PAGE

    def fits(self, tokens: int) -> bool:
        return self.held + tokens <= self.budget

    def has_room(self, tokens: int) -> bool:
        """Whether more can be read: nobody waits, and what is read will fit."""
        return not self.busy or (not self.waiting and len(self.rows) < ROWS and self.fits(tokens))

    # answers come and go

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.waiting)

    def step(self) -> list[Answer]:
        """One token for every row; the answers that ended with it."""
        if not self.busy:
            self._idle()
            return []
        self.admit()
        logits = self.logits()
        if self.early and not self.searches:
            return self._early(logits)
        # Beams choose for themselves, all other rows together
        single = [n for n, row in enumerate(self.rows) if isinstance(row, Answer)]
        rows: list[Answer | Beam] = []
        done: list[Answer] = []
        if single:
            answers = [row for row in self.rows if isinstance(row, Answer)]
            some = logits if len(single) == len(self.rows) else logits[send(single, self.device)]
            for answer, token, logp in zip(answers, *choose(some, answers), strict=True):
                (done if answer.take(token, logp) else rows).append(answer)
            for answer in done:
                self._put_back(answer.pages)
        for answer, search in list(self.searches.items()):
            beams = self._search(search, logits)
            rows += beams
            if not beams:
                answer.tokens, answer.logp, answer.finish = search.best.tokens, search.best.logp, search.best.finish
                done.append(answer)
                del self.searches[answer]
        self.reserved -= sum(answer.reserved for answer in done)
        # One forward for those that go on
        if rows != self.rows:
            self.tables = None
        self.rows = rows
        self.hidden = self._forward() if rows else None
        if not rows:
            self._idle()
        return done

    def _early(self, logits: Tensor) -> list[Answer]:
        """A step that reads nothing before its forward is queued: the host never keeps the device waiting. A row whose
        token turns out to be its last has run once too often."""
        answers = [row for row in self.rows if isinstance(row, Answer)]
        tokens, logps = draw(logits, answers)
        read = fetch((tokens, logps))
        # All go on but those that are as long as they may be
        stay = [n for n, answer in enumerate(answers) if answer.step + 1 < answer.most]
        if len(stay) < len(answers):
            tokens, self.tables = tokens[send(stay, self.device)], None
        self.rows = [answers[n] for n in stay]
        for row in self.rows:
            row.tokens.append(0)  # a place for what is not read yet
        self.hidden = self._forward(tokens) if self.rows else None
        for row in self.rows:
            row.tokens.pop()
        if not self.rows:
            self._idle()
        # Which have ended
        done = [a for a, token, logp in zip(answers, *read(), strict=True) if a.take(token, logp)]
        ended = {id(answer) for answer in done}
        going = [n for n, row in enumerate(self.rows) if id(row) not in ended]
        self.counts["ended"] += len(self.rows) - len(going)
        if len(going) < len(self.rows):
            self.rows, self.tables = [self.rows[n] for n in going], None
            self.hidden = self.hidden[send(going, self.device)] if going and self.hidden is not None else None
        for answer in done:
            self._put_back(answer.pages)
        self.reserved -= sum(answer.reserved for answer in done)
        return done

    def admit(self) -> None:
        """Waiting answers become rows, as far as they fit."""
        if not self.waiting:
            return
        hidden = [] if self.hidden is None else [self.hidden]
        while self.waiting:
            answer = self.waiting[0]
            full = len(self.rows) + answer.decode.beams > ROWS or not self.fits(answer.reserved * PAGE)
            if full and self.rows:
                break
            self.waiting.popleft()
            self.reserved += answer.reserved
            assert answer.of.hidden is not None
            hidden.append(answer.of.hidden[None])
            if answer.decode.beams > 1:
                search = Beams(answer.of, answer.decode, answer.most, self.ends, answer.stops)
                self.searches[answer] = search
                self.rows += search.running
            else:
                self.rows.append(answer)
        self.hidden = torch.cat(hidden) if len(hidden) > 1 else hidden[0]

    def _put_back(self, pages: Iterable[int]) -> None:
        for page in pages:
            heapq.heappush(self.free, page)

    def logits(self) -> Tensor:
        """fp32 [R,V] of each row's last hidden state."""
        assert self.hidden is not None
        count = len(self.hidden)
        hidden = self.hidden
        if count < LEAST:
            hidden = torch.cat([hidden, hidden.new_zeros(LEAST - count, hidden.shape[1])])
        logits: Tensor = self.scorer.model.get_output_embeddings()(hidden)[:count].float()
        softcap = self.scorer.adapter.softcap()
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    def _search(self, search: Beams, logits: Tensor) -> list[Beam]:
        """The beams that go on, with pages of their own where they part."""
        before = search.running
        numbers = [n for n, row in enumerate(self.rows) if isinstance(row, Beam) and row.search is search]
        going = search.advance(logits[send(numbers, self.device)])
        kept = {page for _, beam in going for page in beam.pages}
        self._put_back({page for beam in before for page in beam.pages} - kept)
        inherit(going, PAGE, self._copied)
        return [beam for _, beam in going]

    def _copied(self, page: int) -> int:
        new = self._page()
        assert self.pages is not None
        for tensors in (self.pages.keys, self.pages.values):
            for t in tensors:
                t[new] = t[page]
        self.pages.lengths[new] = self.pages.lengths[page]
        return new

    def _idle(self) -> None:
        """A forward that nobody reads: the other ranks' blocks are gathered in it."""
        scorer = self.scorer
        if self.sharded:
            pack = idle(build_pack([], {}, scorer.adapter.layout())).to(self.device)
            at = pack.positions[None] if pack.positions.dim() == 1 else pack.positions[:, None]
            inputs = scorer.embeddings(pack.tokens)[None]
            scorer.decoder(inputs_embeds=inputs, position_ids=at, use_cache=False, tree=Tree(pack, scorer.backend))

    # the forward of one token a row

    def _forward(self, tokens: Tensor | None = None) -> Tensor:
        """[R,D]: hidden states of the rows' last tokens, whose keys and values join their pages. `tokens`: these, where
        they are on the device alone."""
        scorer, count = self.scorer, len(self.rows)
        if tokens is None:
            tokens = send([row.tokens[-1] for row in self.rows], self.device)
        tokens = torch.nn.functional.pad(tokens, (0, max(LEAST - count, 0)))
        tables = self._tables()
        positions = [row.of.position + len(row.tokens) - 1 for row in self.rows] + [0] * (LEAST - count)
        at = send(positions, self.device)[:, None]
        if scorer.adapter.positions == "mrope":
            at = at.expand(3, -1, -1)
        inputs = scorer.embeddings(tokens)[:, None]
        with attention(scorer.decoder.config, NAME):
            output = scorer.decoder(inputs_embeds=inputs, position_ids=at, use_cache=False, tree=tables)
        self.counts["steps"] += 1
        self.counts["rows"] += count
        self.counts["spare"] += len(tokens) - count
        return output.last_hidden_state[:count, 0]

    def _tables(self) -> Step:
        """Where this step's keys go and what each row looks at; made anew when rows or pages change."""
        lengths = [len(row.tokens) - 1 for row in self.rows]  # own tokens before this one
        for row, length in zip(self.rows, lengths, strict=True):
            if length == PAGE * len(row.pages):
                row.pages.append(self._page())
                self.tables = None
        if self.tables is None:
            self.tables = self._new_tables()
        tables, pool = self.tables, self.tables.pages
        spare = [0] * (LEAST - len(self.rows))
        pages = send([row.pages[-1] for row in self.rows] + spare, self.device)
        tables.page = pages
        tables.offset = send([n % PAGE for n in lengths] + spare, self.device)
        ordinals = [row.of.ordinal + n for row, n in zip(self.rows, lengths, strict=True)]
        tables.ordinals = send(ordinals + spare, self.device)
        pool.lengths[pages] = tables.offset + 1
        pool.masks.clear()
        for stack in tables.nodes:  # a window moves; without one the mask stays
            stack.masks = {None: stack.masks[None]} if None in stack.masks else {}
        return tables

    def _page(self) -> int:
        """A page that is free, the lowest. The pool grows by doubling, within the budget."""
        if self.pages is None or not self.free:
            self._grow()
        return heapq.heappop(self.free)

    def _grow(self) -> None:
        size = 64 if self.pages is None else 2 * len(self.pages.lengths)
        size = max(min(size, self.budget // PAGE + 1), 2)
        like = self.rows[0].of.nodes[0].stack

        def grown(tensors: list[Tensor], others: list[Tensor]) -> list[Tensor]:
            out = [other.new_zeros(size, other.shape[1], PAGE, other.shape[3]) for other in others]
            for new, old in zip(out, tensors, strict=False):
                new[: len(old)] = old
            return out

        had = 1 if self.pages is None else len(self.pages.lengths)
        assert size > had or not self.rows, "more pages are in use than were reserved"
        old = self.pages
        lengths = torch.zeros(size, dtype=torch.int64, device=self.device)
        if old is not None:
            lengths[:had] = old.lengths
        self.pages = Stack(
            keys=grown(old.keys if old else [], like.keys),
            values=grown(old.values if old else [], like.values),
            lengths=lengths,
            starts=torch.zeros_like(lengths),
            rows=torch.zeros(size, 1, dtype=torch.int64, device=self.device),
        )
        self._put_back(range(had, size))

    def _new_tables(self) -> Step:
        """The rows under each node and page, and each row's parts."""
        assert self.pages is not None
        self._tighten()
        stacks = list(dict.fromkeys(node.stack for row in self.rows for node in row.of.nodes))
        under: list[list[list[int]]] = [[[] for _ in range(len(stack.lengths))] for stack in stacks]
        number = {stack: n for n, stack in enumerate(stacks)}
        high = max((page for row in self.rows for page in row.pages), default=0) + 1
        over: list[list[int]] = [[] for _ in range(high)]
        starts = [0] * high
        for r, row in enumerate(self.rows):
            for node in row.of.nodes:
                under[number[node.stack]][node.place].append(r)
            for k, page in enumerate(row.pages):
                over[page].append(r)
                starts[page] = row.of.ordinal + k * PAGE
        # Parts are counted through all of `rows`
        parts: list[list[int]] = [[] for _ in range(max(len(self.rows), LEAST))]
        first = 0
        for stack, rows_of in zip([*stacks, None], [*under, over], strict=True):
            most = max(map(len, rows_of))
            for place, rows in enumerate(rows_of):
                for k, r in enumerate(rows):
                    parts[r].append(first + place * most + k)
            first += most * len(rows_of)
            table = send([rows + [0] * (most - len(rows)) for rows in rows_of], self.device)
            if stack is not None:
                stack.rows, stack.masks = table, {}
        longest = max(map(len, parts))
        pool = Stack(
            keys=[keys[:high] for keys in self.pages.keys],
            values=[values[:high] for values in self.pages.values],
            lengths=self.pages.lengths[:high],
            starts=send(starts, self.device),
            rows=table,
        )
        nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
        padded = send([p + [first] * (longest - len(p)) for p in parts], self.device)
        return Step(stacks, pool, padded, nothing, nothing, nothing)

    def _tighten(self) -> None:
        """Nodes that nobody needs any more leave their stacks, and pages move to the front of the pool, once half of
        what a step would read is of no use."""
        assert self.pages is not None
        needed: dict[Stack, dict[int, Node]] = {}
        for answer in (*self.rows, *self.waiting):
            for node in answer.of.nodes:
                needed.setdefault(node.stack, {})[node.place] = node
        for stack, nodes in needed.items():
            if len(nodes) > len(stack.lengths) / 2:
                continue
            index = send(sorted(nodes), self.device)
            for tensors in (stack.keys, stack.values):
                tensors[:] = [t[index] for t in tensors]
            stack.lengths, stack.starts = stack.lengths[index], stack.starts[index]
            stack.masks = {}
            for place, old in enumerate(sorted(nodes)):
                nodes[old].place = place
        # Pages
        used = sorted({page for row in self.rows for page in row.pages})
        if used and used[-1] > 2 * len(used) + 16:
            index, count = send(used, self.device), len(used)
            for tensors in (self.pages.keys, self.pages.values):
                for t in tensors:
                    t[1 : count + 1] = t[index]
            self.pages.lengths[1 : count + 1] = self.pages.lengths[index]
            moved = {old: new for new, old in enumerate(used, 1)}
            for row in dict.fromkeys(self.rows):
                row.pages = [moved[page] for page in row.pages]
            self.free = list(range(count + 1, len(self.pages.lengths)))
